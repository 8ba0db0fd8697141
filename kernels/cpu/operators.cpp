// The operators as MindSpore calls them (`ops.Custom(..., func_type="aot")`): inputs, then outputs, in `params`; 0
// means success, and a fault is told in one line on stderr. Legend: see kernels.h.
//
//   TopkDistillLoss         logits_NV (float32, float16, bfloat16), target_ids_N, teacher_ids_NK, teacher_logp_NK,
//                           teacher_tail_logp_N, row_weight_N, settings_5 -> ce_N, kd_N, diagnostics_4N; the gradient
//                           overwrites the logits. settings_5: ce_weight, kd_weight, temperature, divergence, support.
//   TopkDistillLossForward  the same without the gradient
//   TopkLogprobs            logits_NV, settings_1 (temperature) -> ids_NK, logp_NK, tail_logp_N
//   FusedLinear             hidden_ND, weight_VD, the five that follow the logits above, settings_6 (those above, and
//                           how many logits may exist at once) -> ce_N, kd_N, diagnostics_4N[, hidden_grad_ND[,
//                           weight_grad_VD]]
//   ScaleInPlace            x, scale_1 -> token_1 (0); x *= scale in place, left untouched by a scale of 1
//   OuterProduct, Project, BackProject    a_NV^T b_ND, hidden_ND weight_VD^T, a_NV weight_VD: its products, for tests

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <exception>
#include <initializer_list>

#include "tasks.h"

namespace pangu {
namespace {

// One operator's call; `fail` prints the line that names it.
struct Call {
  const char* name;
  int nparam;
  void** params;
  int* ndims;
  int64_t** shapes;
  const char** dtypes;

  int fail(const char* what) const {
    fprintf(stderr, "%s: %s\n", name, what);
    return 1;
  }
  bool is(int index, const char* dtype) const { return strcmp(dtypes[index], dtype) == 0; }
  template <typename T>
  T* at(int index) const {
    return static_cast<T*>(params[index]);
  }
  int64_t size(int index) const {
    int64_t size = 1;
    for (int i = 0; i < ndims[index]; ++i) size *= shapes[index][i];
    return size;
  }
  // Whether parameter `index` has this dtype and shape.
  bool fits(int index, const char* dtype, std::initializer_list<int64_t> shape) const {
    return is(index, dtype) && ndims[index] == static_cast<int>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), shapes[index]);
  }
};

// The inputs of the loss from parameter `first` on: target_ids_N, teacher_ids_NK, teacher_logp_NK,
// teacher_tail_logp_N, row_weight_N, settings (ce_weight, kd_weight, temperature, divergence, support, ...); then at
// `outputs` ce_N, kd_N, diagnostics_4N. nullptr, or what is wrong with them.
const char* read_loss(const Call& call, int first, int64_t settings, int outputs, LossTask* task) {
  const int64_t rows = task->rows, top_k = task->top_k = call.ndims[first + 1] == 2 ? call.shapes[first + 1][1] : -1;
  if (!(call.fits(first, "int32", {rows}) && call.fits(first + 1, "int32", {rows, top_k}) &&
        call.fits(first + 2, "float32", {rows, top_k}) && call.fits(first + 3, "float32", {rows}) &&
        call.fits(first + 4, "float32", {rows}) && call.fits(first + 5, "float32", {settings}) &&
        call.fits(outputs, "float32", {rows}) && call.fits(outputs + 1, "float32", {rows}) &&
        call.fits(outputs + 2, "float32", {4, rows}))) {
    return "a shape or dtype differs from target_ids_N, teacher_ids_NK, teacher_logp_NK, teacher_tail_logp_N, "
           "row_weight_N, settings -> ce_N, kd_N, diagnostics_4N";
  }
  task->target_ids_N = call.at<int32_t>(first);
  task->teacher_ids_NK = call.at<int32_t>(first + 1);
  task->teacher_logp_NK = call.at<float>(first + 2);
  task->teacher_tail_logp_N = call.at<float>(first + 3);
  task->row_weight_N = call.at<float>(first + 4);
  const float* values = call.at<float>(first + 5);
  task->ce_weight = values[0];
  task->kd_weight = values[1];
  task->temperature = values[2];
  task->divergence = static_cast<int>(values[3]);
  task->support = static_cast<int>(values[4]);
  task->ce_N = call.at<float>(outputs);
  task->kd_N = call.at<float>(outputs + 1);
  task->diagnostics_4N = call.at<float>(outputs + 2);
  task->diagnostics_stride = rows;
  if (!(task->temperature > 0)) return "the temperature must be positive";
  const bool bounded = task->support == kTailBucket || task->support == kRenormalised;
  if (task->divergence < kForwardKl || task->divergence > kJsd || task->support < kTailBucket ||
      task->support > kSampled || (task->divergence != kForwardKl && !bounded)) {
    return "this divergence is not defined on this support";
  }
  return nullptr;
}

int distill(const Call& call, bool gradient) {
  if (call.nparam != 10 || call.ndims[0] != 2) return call.fail("7 inputs and 3 outputs are expected");
  LossTask task{};
  task.type = call.is(0, "float32") ? Type::kFloat32 : call.is(0, "float16") ? Type::kFloat16 : Type::kBfloat16;
  if (task.type == Type::kBfloat16 && !call.is(0, "bfloat16")) {
    return call.fail("logits are float32, float16 or bfloat16");
  }
  task.logits_NV = call.at<void>(0);
  task.rows = call.shapes[0][0];
  task.vocab = call.shapes[0][1];
  task.gradient = gradient;
  const char* wrong = read_loss(call, 1, 5, 7, &task);
  return wrong != nullptr ? call.fail(wrong) : run_loss(task, call.name, 0);
}

// The whole of losses/fused_linear.py: chunks of rows are projected, turned into gradients, and added up. At most
// `settings[5]` logits exist at a time, but a row of them at least.
int fused_linear(const Call& call) {
  const bool gradient = call.nparam > 11, weights = call.nparam == 13;
  if (call.nparam < 11 || call.nparam > 13 || call.ndims[0] != 2 || call.ndims[1] != 2) {
    return call.fail("8 inputs and 3, 4 or 5 outputs are expected");
  }
  const float* hidden_ND = call.at<float>(0);
  const float* weight_VD = call.at<float>(1);
  LossTask whole{};
  whole.type = Type::kFloat32;
  whole.gradient = gradient;
  const int64_t rows = whole.rows = call.shapes[0][0], width = call.shapes[0][1];
  const int64_t vocab = whole.vocab = call.shapes[1][0];
  if (!(call.is(0, "float32") && call.fits(1, "float32", {vocab, width}) &&
        (!gradient || call.fits(11, "float32", {rows, width})) &&
        (!weights || call.fits(12, "float32", {vocab, width})))) {
    return call.fail("hidden_ND, weight_VD and their gradients are float32 and of equal shapes");
  }
  const char* wrong = read_loss(call, 2, 6, 8, &whole);
  if (wrong != nullptr) return call.fail(wrong);
  const int64_t step = std::max<int64_t>(1, std::min(rows, static_cast<int64_t>(call.at<float>(7)[5]) / vocab));
  const Workspaces logits(1, step * vocab * sizeof(float));
  float* logits_nV = logits.floats(0);
  for (int64_t first = 0; first < rows; first += step) {
    LossTask chunk = whole;
    const int64_t count = chunk.rows = std::min(step, rows - first);
    run_project({hidden_ND + first * width, weight_VD, logits_nV, count, vocab, width});
    chunk.logits_NV = logits_nV;
    chunk.target_ids_N += first;
    chunk.teacher_ids_NK += first * whole.top_k;
    chunk.teacher_logp_NK += first * whole.top_k;
    chunk.teacher_tail_logp_N += first;
    chunk.row_weight_N += first;
    chunk.ce_N += first;
    chunk.kd_N += first;
    chunk.diagnostics_4N += first;
    if (run_loss(chunk, call.name, first) != 0) return 1;
    if (gradient) run_back_project({logits_nV, weight_VD, call.at<float>(11) + first * width, count, vocab, width});
    if (weights) {
      run_outer({logits_nV, hidden_ND + first * width, call.at<float>(12), count, vocab, width, first > 0});
    }
  }
  return 0;
}

int capture(const Call& call) {
  if (call.nparam != 5 || call.ndims[0] != 2 || call.ndims[2] != 2)
    return call.fail("2 inputs and 3 outputs are expected");
  CaptureTask task{};
  const int64_t rows = task.rows = call.shapes[0][0], vocab = task.vocab = call.shapes[0][1];
  const int64_t top_k = task.top_k = call.shapes[2][1];
  if (!(call.is(0, "float32") && call.fits(1, "float32", {1}) && call.fits(2, "int32", {rows, top_k}) &&
        call.fits(3, "float32", {rows, top_k}) && call.fits(4, "float32", {rows}))) {
    return call.fail("a shape or dtype differs from logits_NV, settings_1 -> ids_NK, logp_NK, tail_logp_N");
  }
  task.logits_NV = call.at<float>(0);
  task.temperature = *call.at<float>(1);
  task.ids_NK = call.at<int32_t>(2);
  task.logp_NK = call.at<float>(3);
  task.tail_logp_N = call.at<float>(4);
  if (!(task.temperature > 0)) return call.fail("the temperature must be positive");
  if (top_k < 1 || top_k > vocab) return call.fail("K must be 1 to V");
  run_capture(task);
  return 0;
}

// A product of FusedLinear by itself, for tests: `form` names the dimensions of a, b and the result by letters.
int product(const Call& call, const char* form, void (*run)(const Product&)) {
  int64_t sizes[128];
  std::fill(sizes, sizes + 128, -1);
  for (int i = 0; i < 6; ++i) {
    if (call.nparam != 3 || !call.is(i / 2, "float32") || call.ndims[i / 2] != 2) return call.fail(form);
    int64_t& size = sizes[static_cast<int>(form[i])];
    if (size >= 0 && size != call.shapes[i / 2][i % 2]) return call.fail(form);
    size = call.shapes[i / 2][i % 2];
  }
  run({call.at<float>(0), call.at<float>(1), call.at<float>(2), sizes['N'], sizes['V'], sizes['D']});
  return 0;
}

int scale_in_place(const Call& call) {
  if (call.nparam != 3 || !call.is(0, "float32") || !call.is(1, "float32")) {
    return call.fail("x, scale_1 -> token_1 must be float32");
  }
  *call.at<float>(2) = 0;
  const float factor = *call.at<float>(1);
  if (factor != 1) run_scale(call.at<float>(0), call.size(0), factor);
  return 0;
}

}  // namespace
}  // namespace pangu

// No exception may reach MindSpore through the C interface.
#define PANGU_EXPORT extern "C" __attribute__((visibility("default")))
#define PANGU_OPERATOR(NAME, ...)                                                                           \
  PANGU_EXPORT int NAME(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, \
                      void*) {                                                                              \
    const pangu::Call call{#NAME, nparam, params, ndims, shapes, dtypes};                                   \
    try {                                                                                                   \
      return pangu::__VA_ARGS__;                                                                                 \
    } catch (const std::exception& error) {                                                                 \
      return call.fail(error.what());                                                                       \
    }                                                                                                       \
  }

PANGU_OPERATOR(TopkDistillLoss, distill(call, true))
PANGU_OPERATOR(TopkDistillLossForward, distill(call, false))
PANGU_OPERATOR(TopkLogprobs, capture(call))
PANGU_OPERATOR(FusedLinear, fused_linear(call))
PANGU_OPERATOR(ScaleInPlace, scale_in_place(call))
PANGU_OPERATOR(OuterProduct, product(call, "NVNDVD", pangu::run_outer))
PANGU_OPERATOR(Project, product(call, "NDVDNV", pangu::run_project))
PANGU_OPERATOR(BackProject, product(call, "NVVDND", pangu::run_back_project))

// How many threads the operators use from now on; 0: all cores.
PANGU_EXPORT void SetThreads(int threads) { pangu::set_threads(threads); }

// For tests: exp() as the operators compute it, and the instruction set in use.
PANGU_EXPORT void Exponentials(const float* x, float* y, int64_t count) { pangu::kernels().exponentials(x, y, count); }
PANGU_EXPORT const char* InstructionSet() { return pangu::kernels().name; }
