// The operators as MindSpore calls them (`ops.Custom(..., func_type="aot")`): inputs, then outputs, in `params`; 0
// means success, and a fault is told in one line on stderr. Legend: see kernels.h.
//
//   TopkDistillLoss         logits_NV (float32, float16, bfloat16), target_ids_N, teacher_ids_NK, teacher_logp_NK,
//                           teacher_tail_logp_N, row_weight_N, settings_5 -> ce_N, kd_N, diagnostics_4N; the gradient
//                           overwrites the logits. settings_5: ce_weight, kd_weight, temperature, divergence, support.
//   TopkDistillLossForward  the same without the gradient
//   TopkLogprobs            logits_NV, settings_1 (temperature) -> ids_NK, logp_NK, tail_logp_N
//   OuterProduct            a_NV, b_ND -> c_VD = a^T b
//   AddOuterProduct         a_NV, b_ND, c_VD -> token_1 (0); c += a^T b in place
//   ScaleInPlace            x, scale_1 -> token_1 (0); x *= scale in place, left untouched by a scale of 1

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <new>
#include <thread>

#include "kernels.h"
#include "parallel.h"

namespace pangu {
namespace {

constexpr int64_t kGrain = 100000;  // elements that are worth a thread

std::atomic<int> wanted_threads{0};

const Kernels& choose() {
  const char* wanted = getenv("PANGU_CPU_ISA");
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool any = wanted == nullptr || *wanted == 0;
  if (avx512 && (any || strcmp(wanted, "avx512") == 0)) return kernels_avx512;
  if (avx2 && (any || strcmp(wanted, "avx2") == 0)) return kernels_avx2;
#endif
  if (wanted != nullptr && *wanted != 0 && strcmp(wanted, "baseline") != 0) {
    fprintf(stderr, "PANGU_CPU_ISA=%s: this processor or build lacks it; the baseline is used\n", wanted);
  }
  return kernels_baseline;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

int threads_for(int64_t elements) {
  const int wanted = wanted_threads.load();
  const int64_t cores = wanted > 0 ? wanted : std::max(1u, std::thread::hardware_concurrency());
  return static_cast<int>(std::max<int64_t>(1, std::min(cores, elements / kGrain)));
}

// One piece of memory a thread, 64-byte aligned. A page exists once its thread has written to it.
class Workspaces {
 public:
  Workspaces(int threads, int64_t bytes) : stride_((bytes + 127) / 64 * 64) {
    memory_.reset(static_cast<char*>(aligned_alloc(64, threads * stride_)));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  char* of(int thread) const { return memory_.get() + thread * stride_; }

 private:
  struct Free {
    void operator()(char* memory) const { free(memory); }
  };
  int64_t stride_;
  std::unique_ptr<char, Free> memory_;
};

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

void tell(const Call& call, int64_t row, RowResult result, int64_t vocab) {
  const long long id = result.id;
  char what[80] = "";
  switch (result.fault) {
    case RowFault::kTarget: snprintf(what, sizeof what, "target id %lld is outside the vocabulary", id); break;
    case RowFault::kTeacherId: snprintf(what, sizeof what, "teacher id %lld is outside the vocabulary", id); break;
    default: snprintf(what, sizeof what, "teacher id %lld is given twice", id);
  }
  fprintf(stderr, "%s: row %lld: %s (V = %lld)\n", call.name, static_cast<long long>(row), what,
          static_cast<long long>(vocab));
}

// Runs work(row, workspace) for each row; the first fault that is met is told, and 1 returned.
int for_rows(const Call& call, int64_t rows, int64_t row_size, int64_t vocab, int64_t workspace,
             const std::function<RowResult(int64_t, void*)>& work) {
  std::atomic<bool> failed{false};
  const int threads = threads_for(rows * row_size);
  // A few rows at a time when they are short; one, so that masked rows even out, when they are long.
  const int64_t step = std::max<int64_t>(1, std::min(rows / (4 * threads), 8192 / std::max<int64_t>(row_size, 1)));
  const Workspaces spaces(threads, workspace);
  parallel_for((rows + step - 1) / step, threads, [&](int64_t piece, int thread) {
    for (int64_t row = piece * step; row < std::min(rows, (piece + 1) * step) && !failed; ++row) {
      const RowResult result = work(row, spaces.of(thread));
      if (result.fault != RowFault::kNone && !failed.exchange(true)) tell(call, row, result, vocab);
    }
  });
  return failed ? 1 : 0;
}

int distill(const Call& call, bool gradient) {
  if (call.nparam != 10 || call.ndims[0] != 2 || call.ndims[2] != 2) return call.fail("7 inputs and 3 outputs, please");
  LossTask task{};
  task.type = call.is(0, "float32") ? Type::kFloat32 : call.is(0, "float16") ? Type::kFloat16 : Type::kBfloat16;
  const int64_t rows = task.rows = call.shapes[0][0], vocab = task.vocab = call.shapes[0][1];
  const int64_t top_k = task.top_k = call.shapes[2][1];
  if (task.type == Type::kBfloat16 && !call.is(0, "bfloat16")) {
    return call.fail("logits are float32, float16 or bfloat16");
  }
  if (!(call.fits(1, "int32", {rows}) && call.fits(2, "int32", {rows, top_k}) &&
        call.fits(3, "float32", {rows, top_k}) && call.fits(4, "float32", {rows}) && call.fits(5, "float32", {rows}) &&
        call.fits(6, "float32", {5}) && call.fits(7, "float32", {rows}) && call.fits(8, "float32", {rows}) &&
        call.fits(9, "float32", {4, rows}))) {
    return call.fail("a shape or dtype differs from logits_NV, target_ids_N, teacher_ids_NK, teacher_logp_NK, "
                     "teacher_tail_logp_N, row_weight_N, settings_5 -> ce_N, kd_N, diagnostics_4N");
  }
  task.logits_NV = call.at<void>(0);
  task.target_ids_N = call.at<int32_t>(1);
  task.teacher_ids_NK = call.at<int32_t>(2);
  task.teacher_logp_NK = call.at<float>(3);
  task.teacher_tail_logp_N = call.at<float>(4);
  task.row_weight_N = call.at<float>(5);
  const float* settings = call.at<float>(6);
  task.ce_weight = settings[0];
  task.kd_weight = settings[1];
  task.temperature = settings[2];
  task.divergence = static_cast<int>(settings[3]);
  task.support = static_cast<int>(settings[4]);
  task.ce_N = call.at<float>(7);
  task.kd_N = call.at<float>(8);
  task.diagnostics_4N = call.at<float>(9);
  task.gradient = gradient;
  if (!(task.temperature > 0)) return call.fail("the temperature must be positive");
  const bool bounded = task.support == kTailBucket || task.support == kRenormalised;
  if (task.divergence < kForwardKl || task.divergence > kJsd || task.support < kTailBucket ||
      task.support > kSampled || (task.divergence != kForwardKl && !bounded)) {
    return call.fail("this divergence is not defined on this support");
  }
  return for_rows(call, rows, vocab, vocab, kernels().loss_workspace(task),
                  [&](int64_t row, void* workspace) { return kernels().loss_row(task, row, workspace); });
}

uint64_t keep_largest(uint64_t* keys, int64_t count, int64_t k) {
  if (count > k) std::nth_element(keys, keys + k - 1, keys + count, std::greater<uint64_t>());
  return *std::min_element(keys, keys + k);
}

int capture(const Call& call) {
  if (call.nparam != 5 || call.ndims[0] != 2 || call.ndims[2] != 2) return call.fail("2 inputs and 3 outputs, please");
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
  return for_rows(call, rows, vocab, vocab, kernels().capture_workspace(task), [&](int64_t row, void* workspace) {
    return kernels().capture_row(task, row, workspace, keep_largest);
  });
}

int outer(const Call& call, bool accumulate) {
  if (call.nparam != (accumulate ? 4 : 3) || call.ndims[0] != 2 || call.ndims[1] != 2) {
    return call.fail("a_NV, b_ND -> c_VD, or a_NV, b_ND, c_VD -> token_1, please");
  }
  const int64_t rows = call.shapes[0][0], vocab = call.shapes[0][1], width = call.shapes[1][1];
  if (!(call.is(0, "float32") && call.fits(1, "float32", {rows, width}) && call.fits(2, "float32", {vocab, width}))) {
    return call.fail("a_NV, b_ND and c_VD are float32 and share N, V and D");
  }
  if (accumulate) *call.at<float>(3) = 0;
  const OuterTask task{call.at<float>(0), call.at<float>(1), call.at<float>(2), rows, vocab, width, accumulate};
  const Kernels& table = kernels();
  const int threads = threads_for(rows * vocab * width / 16);
  const int64_t panels = (width + table.outer_panel - 1) / table.outer_panel;
  const Workspaces packed_b(1, panels * table.outer_panel * rows * sizeof(float));
  float* packed = reinterpret_cast<float*>(packed_b.of(0));
  parallel_for(panels, threads_for(rows * width), [&](int64_t panel, int) { table.outer_pack(task, panel, packed); });
  // Strips of up to 192 rows: their part of `a` stays in the second cache. More than one a thread where V is small.
  const int64_t fair = (vocab + 4 * threads - 1) / (4 * threads), tile = table.outer_tile;
  const int64_t height = std::min<int64_t>(192, (fair + tile - 1) / tile * tile);
  const Workspaces packed_a(threads, height * std::min(rows, table.outer_depth) * sizeof(float));
  parallel_for((vocab + height - 1) / height, threads, [&](int64_t strip, int thread) {
    table.outer_strip(task, packed, strip * height, std::min(vocab, (strip + 1) * height),
                      reinterpret_cast<float*>(packed_a.of(thread)));
  });
  return 0;
}

int scale_in_place(const Call& call) {
  if (call.nparam != 3 || !call.is(0, "float32") || !call.is(1, "float32")) {
    return call.fail("x, scale_1 -> token_1, all float32, please");
  }
  *call.at<float>(2) = 0;
  const float factor = *call.at<float>(1);
  if (factor == 1) return 0;
  constexpr int64_t kPiece = 1 << 16;
  const int64_t size = call.size(0);
  float* x = call.at<float>(0);
  parallel_for((size + kPiece - 1) / kPiece, threads_for(size), [&](int64_t piece, int) {
    kernels().scale(x + piece * kPiece, std::min(kPiece, size - piece * kPiece), factor);
  });
  return 0;
}

}  // namespace
}  // namespace pangu

// No exception may reach MindSpore through the C interface.
#define PANGU_EXPORT extern "C" __attribute__((visibility("default")))
#define PANGU_OPERATOR(NAME, WORK)                                                                          \
  PANGU_EXPORT int NAME(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, \
                      void*) {                                                                              \
    const pangu::Call call{#NAME, nparam, params, ndims, shapes, dtypes};                                   \
    try {                                                                                                   \
      return pangu::WORK;                                                                                   \
    } catch (const std::exception& error) {                                                                 \
      return call.fail(error.what());                                                                       \
    }                                                                                                       \
  }

PANGU_OPERATOR(TopkDistillLoss, distill(call, true))
PANGU_OPERATOR(TopkDistillLossForward, distill(call, false))
PANGU_OPERATOR(TopkLogprobs, capture(call))
PANGU_OPERATOR(OuterProduct, outer(call, false))
PANGU_OPERATOR(AddOuterProduct, outer(call, true))
PANGU_OPERATOR(ScaleInPlace, scale_in_place(call))

// How many threads the operators use from now on; 0: all cores.
PANGU_EXPORT void SetThreads(int threads) { pangu::wanted_threads = threads; }

// For tests: exp() as the operators compute it, and the instruction set in use.
PANGU_EXPORT void Exponentials(const float* x, float* y, int64_t count) { pangu::kernels().exponentials(x, y, count); }
PANGU_EXPORT const char* InstructionSet() { return pangu::kernels().name; }
