// moe.hpp: handles free what they hold, in whatever way a scope is left; errors throw with their status and message; what
// is computed through them is what C computes.
#include <moe.hpp>
#include <moe.hpp>

#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <unistd.h>
#include <utility>
#include <vector>

#include "check.h"

namespace {

const int64_t H = 16, N_TOKENS = 6;
long blocks = 0;  // that the library holds

void *take(void *, size_t size, size_t alignment) {
  blocks++;
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void give_back(void *, void *memory) {
  blocks--;
  std::free(memory);
}

moe::Context counting() {
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.alloc = take;
  config.dealloc = give_back;
  return moe::Context(moe_context_create, &config);
}

moe_layer_config layer_config(int64_t top_k = 2) {
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 32;
  config.n_experts = 4;
  config.top_k = top_k;
  return config;
}

std::vector<float> tokens() {
  std::vector<float> x(N_TOKENS * H);  // [T,H]
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  return x;
}

// A handle of every kind, made in its context and gone with the scope.
void every_kind() {
  moe::Context context = counting();
  moe_layer_config config = layer_config();
  moe::Layer layer(moe_layer_create, context, &config);
  moe::Tape tape(moe_tape_create, layer);
  moe::Routing routing(moe_routing_create, context);
  moe::Statistics statistics(moe_statistics_create, context, 4);
  moe_tensor tensors[16];
  const int64_t n = parameters_of(layer, tensors, 16);
  moe_adamw_config adamw = MOE_ADAMW_CONFIG_INIT;
  moe::Optimizer optimizer(moe_adamw_create, context, &adamw, tensors, n);
  moe_model_config shape = MOE_MODEL_CONFIG_INIT;
  shape.hidden_size = H;
  shape.n_layers = 1;
  shape.n_heads = 2;
  shape.vocabulary_size = 8;
  shape.causal = 1;
  shape.moe = &config;
  shape.moe_every = 1;
  moe::Model model(moe_model_create, context, &shape);
  moe::ModelTape model_tape(moe_model_tape_create, model);
  moe::Cache cache(moe_cache_create, model, 1, 4);
  moe::Calibration calibration(moe_calibration_create, model, size_t{1} << 20);
  char path[] = "/tmp/libmoe-handles-XXXXXX";
  const int file = mkstemp(path);
  CHECK(file >= 0 && close(file) == 0 && unlink(path) == 0);
  moe::check(moe_layer_save(layer, path, MOE_LAYOUT_LIBMOE, MOE_NO_LAYER_NUMBER, MOE_DTYPE_F32));
  moe::Checkpoint checkpoint(moe_checkpoint_open, context, path);
  int64_t count = 0;
  moe::check(moe_checkpoint_tensor_count(checkpoint, &count));
  CHECK(count == n && unlink(path) == 0);
  moe::Mapping mapping(moe_mapping_create, context, path, size_t{64});
  CHECK(mapping && unlink(path) == 0);
  std::vector<float> weights(2 * H * H);  // [E,H,H], of linear experts
  moe_experts_config linear = MOE_EXPERTS_CONFIG_INIT;
  linear.n_experts = 2;
  linear.hidden_size = H;
  linear.expert_kind = MOE_EXPERT_LINEAR;
  const moe_expert_tensor down = {MOE_EXPERT_PART_DOWN, MOE_DTYPE_F32, weights.data(), nullptr, {H * H, H, 1}};
  linear.weights = &down;
  linear.n_weights = 1;
  moe::ExpertsPrepared prepared(moe_experts_prepare, context, &linear, MOE_PREPARED_F32);
  CHECK(blocks > 8);
}

// What C computes by itself, to the bit.
void computes_as_c() {
  const std::vector<float> x = tokens();
  std::vector<float> y(x.size()), expected(x.size());  // [T,H] each
  const moe_layer_config config = layer_config();
  moe_context *plain = nullptr;
  moe_layer *by_hand = nullptr;
  CHECK(moe_context_create(nullptr, &plain) == MOE_OK);
  CHECK(moe_layer_create(plain, &config, &by_hand) == MOE_OK);
  CHECK(moe_layer_forward(by_hand, x.data(), N_TOKENS, nullptr, expected.data(), nullptr, nullptr) == MOE_OK);
  moe_layer_free(by_hand);
  moe_context_free(plain);

  moe::Context context(moe_context_create, nullptr);
  moe::Layer layer(moe_layer_create, context, &config);
  moe::check(moe_layer_forward(layer, x.data(), N_TOKENS, nullptr, y.data(), nullptr, nullptr));
  CHECK(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0);
}

void errors_throw() {
  moe::Context context = counting();
  const moe_layer_config wrong = layer_config(9);
  moe_status status = MOE_OK;
  try {
    moe::Layer layer(moe_layer_create, context, &wrong);
  } catch (const moe::Error &error) {
    status = error.status();
    CHECK(contains(error.what(), "MOE_ERROR_INVALID_ARGUMENT: ") && contains(error.what(), "top_k"));
    CHECK(contains(error.what(), moe_last_error_message()));
  }
  CHECK(status == MOE_ERROR_INVALID_ARGUMENT);

  const moe_layer_config config = layer_config();
  moe::Layer layer(moe_layer_create, context, &config);
  moe::Tape tape(moe_tape_create, layer);
  std::vector<float> x = tokens(), dx(x.size());  // [T,H] each
  const auto backward = [&] {
    return moe_layer_backward(layer, tape, x.data(), x.data(), 1.0f, dx.data(), nullptr);
  };
  try {
    moe::check(backward());  // before forward
  } catch (const std::runtime_error &error) {  // as a program that knows no libmoe would
    status = dynamic_cast<const moe::Error &>(error).status();
  }
  CHECK(status == MOE_ERROR_BAD_STATE);
  moe::check(MOE_OK);
}

void handles_move() {
  static_assert(!std::is_copy_constructible<moe::Layer>::value && !std::is_copy_assignable<moe::Layer>::value,
                "two handles would free one layer");
  static_assert(std::is_nothrow_move_constructible<moe::Layer>::value, "so that a vector moves its layers");
  static_assert(sizeof(moe::Layer) == sizeof(moe_layer *), "a pointer and no more");
  moe::Context context = counting();
  const moe_layer_config config = layer_config();
  std::vector<moe::Layer> layers;
  for (int i = 0; i < 5; i++) layers.emplace_back(moe_layer_create, context, &config);
  const long with_five = blocks;
  moe_layer *first = layers[0];
  moe::Layer other(std::move(layers[0]));
  CHECK(other == first && !layers[0] && blocks == with_five);
  const std::vector<float> x = tokens();
  std::vector<float> y(x.size());
  CHECK(moe_layer_forward(layers[0], x.data(), N_TOKENS, nullptr, y.data(), nullptr, nullptr) ==
        MOE_ERROR_INVALID_ARGUMENT);
  other = std::move(layers[1]);  // frees what it held
  CHECK(blocks < with_five);
  other = moe::Layer();
  layers.clear();
}

}  // namespace

int main() {
  every_kind();
  CHECK(blocks == 0);
  computes_as_c();
  errors_throw();
  CHECK(blocks == 0);
  handles_move();
  CHECK(blocks == 0);
  return 0;
}
