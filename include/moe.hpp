/* moe.hpp: for C++17, the handles of moe.h and the headers beside it as objects that free themselves, and errors that
 * throw.
 *
 *     moe::Context context(moe_context_create, nullptr);
 *     moe_layer_config config = MOE_LAYER_CONFIG_INIT;
 *     config.hidden_size = 64; config.intermediate_size = 256; config.n_experts = 8; config.top_k = 2;
 *     moe::Layer layer(moe_layer_create, context, &config);
 *     moe::Tape tape(moe_tape_create, layer);
 *     moe::check(moe_layer_forward(layer, x, n_tokens, nullptr, y, tape, nullptr));
 *
 * A handle is made by a function of the library and its arguments, all but the last, which is where the function would
 * put the pointer.  It goes wherever the C functions take that pointer, moves, and is not copied.  Those that a function
 * only lends, such as the layers of moe_model_layer, stay plain pointers.
 */
#ifndef MOE_HPP
#define MOE_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "moe.h"
#include "moe_communicator.h"
#include "moe_experts.h"
#include "moe_model.h"
#include "moe_pretrained.h"
#include "moe_ranks.h"

namespace moe {

/** A call that came to something else than MOE_OK; what() has the status's name and the library's message. */
class Error : public std::runtime_error {
 public:
  explicit Error(moe_status status)
      : std::runtime_error(std::string(moe_status_name(status)) + ": " + moe_last_error_message()), status_(status) {}
  moe_status status() const noexcept { return status_; }

 private:
  moe_status status_;
};

/** Throws what the calling thread's latest call came to, unless that is MOE_OK. */
inline void check(moe_status status) {
  if (status != MOE_OK) throw Error(status);
}

template <class Native, void (*free)(Native *)>
class Handle {
 public:
  /** Holds nothing, which the C functions refuse as NULL; so does a handle that was moved from. */
  Handle() noexcept = default;

  template <class... Parameters, class... Arguments>
  explicit Handle(moe_status (*create)(Parameters...), Arguments &&...arguments) {
    Native *made = nullptr;
    check(create(std::forward<Arguments>(arguments)..., &made));
    held_.reset(made);
  }

  operator Native *() const noexcept { return held_.get(); }

 private:
  struct Free {
    void operator()(Native *native) const noexcept { free(native); }
  };
  std::unique_ptr<Native, Free> held_;
};

using Context = Handle<moe_context, moe_context_free>;
using Layer = Handle<moe_layer, moe_layer_free>;
using ExpertsPrepared = Handle<moe_experts_prepared, moe_experts_prepared_free>;
using ExpertsRanks = Handle<moe_experts_ranks, moe_experts_ranks_free>;
using Tape = Handle<moe_tape, moe_tape_free>;
using Routing = Handle<moe_routing, moe_routing_free>;
using Statistics = Handle<moe_statistics, moe_statistics_free>;
using Optimizer = Handle<moe_optimizer, moe_optimizer_free>;
using Checkpoint = Handle<moe_checkpoint, moe_checkpoint_free>;
using Mapping = Handle<moe_mapping, moe_mapping_free>;
using Model = Handle<moe_model, moe_model_free>;
using ModelTape = Handle<moe_model_tape, moe_model_tape_free>;
using Calibration = Handle<moe_calibration, moe_calibration_free>;
using Cache = Handle<moe_cache, moe_cache_free>;
using Pretrained = Handle<moe_pretrained, moe_pretrained_free>;

}  // namespace moe

#endif
