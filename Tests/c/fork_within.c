/* Forks while calls run: by another thread, whose call will never end in the child, and by a callback in the middle of a
 * call.  Nothing hangs; where something cannot go on, a status says so, and a new context computes the same bits. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <moe_model.h>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { H = 24, N_TOKENS = 2000, V = 11, S = 40 };

static float x[N_TOKENS * H]; /* [T,H] */
static int32_t tokens[S], targets[S];

static moe_layer *new_layer(moe_context *context, int32_t unallocated) {
  moe_layer_config config = MOE_LAYER_CONFIG_INIT;
  config.hidden_size = H;
  config.intermediate_size = 40;
  config.n_experts = 6;
  config.top_k = 2;
  config.unallocated = unallocated;
  moe_layer *layer = NULL;
  CHECK(moe_layer_create(context, &config, &layer) == MOE_OK);
  return layer;
}

static moe_model *new_model(moe_context *context) {
  moe_layer_config experts = MOE_LAYER_CONFIG_INIT;
  experts.intermediate_size = 12;
  experts.n_experts = 4;
  experts.top_k = 2;
  moe_model_config config = MOE_MODEL_CONFIG_INIT;
  config.hidden_size = 16;
  config.n_layers = 2;
  config.n_heads = 2;
  config.vocabulary_size = V;
  config.rope_theta = 10000;
  config.causal = 1;
  config.final_norm = 1;
  config.moe = &experts;
  moe_model *model = NULL;
  CHECK(moe_model_create(context, &config, &model) == MOE_OK);
  return model;
}

struct work {
  moe_layer *layer;
  moe_model *model;
  moe_tape *tape, *other_tape;             /* of the layer */
  moe_model_tape *model_tape, *other_model_tape;
};

static moe_model_input text(void) {
  moe_model_input input = MOE_MODEL_INPUT_INIT;
  input.n_sequences = 1;
  input.sequence_length = S;
  input.tokens = tokens;
  input.targets = targets;
  return input;
}

static void prepare(struct work *work, moe_context *context) {
  static float y[N_TOKENS * H]; /* [T,H] */
  moe_model_input input = text();
  work->layer = new_layer(context, 0);
  work->model = new_model(context);
  CHECK(moe_tape_create(work->layer, &work->tape) == MOE_OK && moe_tape_create(work->layer, &work->other_tape) == MOE_OK);
  CHECK(moe_model_tape_create(work->model, &work->model_tape) == MOE_OK);
  CHECK(moe_model_tape_create(work->model, &work->other_model_tape) == MOE_OK);
  CHECK(moe_layer_forward(work->layer, x, N_TOKENS, NULL, y, work->tape, NULL) == MOE_OK);
  CHECK(moe_layer_forward(work->layer, x, N_TOKENS, NULL, y, work->other_tape, NULL) == MOE_OK);
  CHECK(moe_model_forward(work->model, &input, NULL, NULL, work->model_tape, NULL) == MOE_OK);
  CHECK(moe_model_forward(work->model, &input, NULL, NULL, work->other_model_tape, NULL) == MOE_OK);
}

static void finish(struct work *work) {
  moe_tape_free(work->tape);
  moe_tape_free(work->other_tape);
  moe_model_tape_free(work->model_tape);
  moe_model_tape_free(work->other_model_tape);
  moe_layer_free(work->layer);
  moe_model_free(work->model);
}

static volatile int armed, inside, go_on;

static int32_t hold(void *user) {
  (void)user;
  if (armed) {
    inside = 1;
    while (!go_on) usleep(1000);
  }
  return 0;
}

static moe_status layer_backward(const struct work *work, moe_tape *tape, float *dx) {
  return moe_layer_backward(work->layer, tape, x, x, 1.0f, dx, NULL);
}

static moe_status model_backward(const struct work *work, moe_model_tape *tape) {
  moe_model_input input = text();
  return moe_model_backward(work->model, tape, &input, 1.0, NULL, NULL);
}

static void *layer_thread(void *work) {
  static float dx[N_TOKENS * H]; /* [T,H] */
  CHECK(layer_backward((struct work *)work, ((struct work *)work)->tape, dx) == MOE_OK);
  return NULL;
}

static void *model_thread(void *work) {
  CHECK(model_backward((struct work *)work, ((struct work *)work)->model_tape) == MOE_OK);
  return NULL;
}

/* Ends a child.  What the parent's other threads held at the fork is nobody's here, and a check for leaks would report it. */
static void leave(void) { _exit(0); }

static void wait_for(pid_t child) {
  int status = 0;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void refused(moe_status status, const char *what) {
  CHECK(status == MOE_ERROR_BAD_STATE);
  CHECK(contains(moe_last_error_message(), "forked") && contains(moe_last_error_message(), what));
  CHECK(contains(moe_last_error_message(), "make a new context"));
}

/* Backward calls on one handle take turns, and in the child the other thread's turn never ends. */
static void beside(moe_context *context, void *(*body)(void *)) {
  static float y[N_TOKENS * H], expected[N_TOKENS * H]; /* [T,H] */
  struct work work;
  armed = inside = go_on = 0;
  prepare(&work, context);
  CHECK(moe_layer_forward(work.layer, x, N_TOKENS, NULL, expected, NULL, NULL) == MOE_OK);
  armed = 1;
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, body, &work) == 0);
  while (!inside) usleep(1000);
  pid_t child = fork();
  if (child == 0) {
    alarm(30); /* a deadlock ends the child, and with it the test */
    armed = 0;
    if (body == layer_thread) {
      refused(layer_backward(&work, work.other_tape, y), "layer");
      CHECK(model_backward(&work, work.other_model_tape) == MOE_OK);
    } else {
      refused(model_backward(&work, work.other_model_tape), "model");
      CHECK(layer_backward(&work, work.other_tape, y) == MOE_OK);
    }
    /* What takes no turns goes on, */
    CHECK(moe_layer_forward(work.layer, x, N_TOKENS, NULL, y, NULL, NULL) == MOE_OK);
    CHECK(memcmp(y, expected, sizeof y) == 0);
    finish(&work);
    /* and so does what is made here. */
    moe_context *own = NULL;
    CHECK(moe_context_create(NULL, &own) == MOE_OK);
    prepare(&work, own);
    CHECK(layer_backward(&work, work.tape, y) == MOE_OK && model_backward(&work, work.model_tape) == MOE_OK);
    finish(&work);
    moe_context_free(own);
    moe_context_free(context);
    leave();
  }
  wait_for(child);
  go_on = 1;
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(layer_backward(&work, work.other_tape, y) == MOE_OK);
  finish(&work);
}

static pid_t forked;

static int32_t fork_once(void *user) {
  (void)user;
  if (forked < 0) forked = fork();
  return 0;
}

/* The child returns from the callback into a call whose other threads it does not have. */
static void by_a_callback(void) {
  static float y[N_TOKENS * H], expected[N_TOKENS * H]; /* [T,H] */
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.n_threads = 3;
  config.cancel = fork_once;
  moe_context *context = NULL, *own = NULL;
  CHECK(moe_context_create(&config, &context) == MOE_OK);
  moe_layer *layer = new_layer(context, 0);
  forked = 0;
  CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, expected, NULL, NULL) == MOE_OK);
  for (int i = 0; i < 20; i++) {
    forked = -1;
    moe_status status = moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL);
    CHECK(forked >= 0);
    if (forked == 0) {
      alarm(30);
      if (status == MOE_OK) {
        CHECK(memcmp(y, expected, sizeof y) == 0); /* the others had done their part, or it began afterwards */
      } else {
        refused(status, "within this call");
      }
      CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL) == MOE_OK);
      CHECK(memcmp(y, expected, sizeof y) == 0);
      moe_layer_free(layer);
      moe_context_free(context);
      CHECK(moe_context_create(NULL, &own) == MOE_OK);
      layer = new_layer(own, 0);
      CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL) == MOE_OK);
      CHECK(memcmp(y, expected, sizeof y) == 0);
      leave();
    }
    CHECK(status == MOE_OK && memcmp(y, expected, sizeof y) == 0);
    wait_for(forked);
  }
  moe_layer_free(layer);
  moe_context_free(context);
}

static moe_layer *offloaded(moe_context *context, const char *path) {
  moe_checkpoint *checkpoint = NULL;
  CHECK(moe_checkpoint_open(context, path, &checkpoint) == MOE_OK);
  moe_layer *layer = new_layer(context, MOE_UNALLOCATED_EXPERT_WEIGHTS);
  const size_t two_experts = 2 * 2 * H * 40 * sizeof(float);
  CHECK(moe_layer_offload(layer, checkpoint, MOE_LAYOUT_LIBMOE, 0, two_experts) == MOE_OK);
  moe_checkpoint_free(checkpoint);
  return layer;
}

/* The same of a layer whose experts are in a file, and are read by a thread of their own. */
static void by_a_callback_beside_a_reader(void) {
  static float y[N_TOKENS * H], expected[N_TOKENS * H]; /* [T,H] */
  char path[] = "/tmp/moe_fork_XXXXXX";
  CHECK(close(mkstemp(path)) == 0);
  moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
  config.n_threads = 2;
  config.cancel = fork_once;
  moe_context *context = NULL;
  CHECK(moe_context_create(&config, &context) == MOE_OK);
  moe_layer *layer = new_layer(context, 0);
  forked = 0;
  CHECK(moe_layer_save(layer, path, MOE_LAYOUT_LIBMOE, 0, MOE_DTYPE_F32) == MOE_OK);
  CHECK(moe_layer_forward(layer, x, N_TOKENS, NULL, expected, NULL, NULL) == MOE_OK);
  moe_layer_free(layer);
  for (int i = 0; i < 20; i++) {
    layer = offloaded(context, path);
    forked = -1;
    moe_status status = moe_layer_forward(layer, x, N_TOKENS, NULL, y, NULL, NULL);
    CHECK(forked >= 0);
    if (status == MOE_OK) {
      CHECK(memcmp(y, expected, sizeof y) == 0);
    } else {
      CHECK(forked == 0);
      refused(status, "within this call");
    }
    moe_layer_free(layer);
    if (forked == 0) {
      moe_context_free(context);
      leave();
    }
    wait_for(forked);
  }
  moe_context_free(context);
  unlink(path);
}

int main(void) {
  for (int i = 0; i < N_TOKENS * H; i++) x[i] = (float)(i * 37 % 101) / 50 - 1;
  for (int i = 0; i < S; i++) {
    tokens[i] = i * i % V;
    targets[i] = (i * i + 2 * i + 1) % V;
  }
  for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
    moe_context_config config = MOE_CONTEXT_CONFIG_INIT;
    config.n_threads = n_threads;
    config.cancel = hold;
    moe_context *context = NULL;
    CHECK(moe_context_create(&config, &context) == MOE_OK);
    beside(context, layer_thread);
    beside(context, model_thread);
    moe_context_free(context);
  }
  by_a_callback();
  by_a_callback_beside_a_reader();
  return 0;
}
