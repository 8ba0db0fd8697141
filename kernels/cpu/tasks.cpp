#include "tasks.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>

#include "parallel.h"
#include "workspace.h"

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

int threads_for(int64_t elements) {
  const int wanted = wanted_threads.load();
  const int64_t cores = wanted > 0 ? wanted : std::max(1u, std::thread::hardware_concurrency());
  return static_cast<int>(std::max<int64_t>(1, std::min(cores, elements / kGrain)));
}

void tell(const char* name, int64_t row, RowResult result, int64_t vocab) {
  const long long id = result.id;
  char what[80] = "";
  switch (result.fault) {
    case RowFault::kTarget: snprintf(what, sizeof what, "target id %lld is outside the vocabulary", id); break;
    case RowFault::kTeacherId: snprintf(what, sizeof what, "teacher id %lld is outside the vocabulary", id); break;
    default: snprintf(what, sizeof what, "teacher id %lld is given twice", id);
  }
  fprintf(stderr, "%s: row %lld: %s (V = %lld)\n", name, static_cast<long long>(row), what,
          static_cast<long long>(vocab));
}

// Runs work(row, workspace) for each row; the first fault that is met is told, and 1 returned.
int for_rows(const char* name, int64_t first, int64_t rows, int64_t row_size, int64_t vocab, int64_t workspace,
             const std::function<RowResult(int64_t, void*)>& work) {
  std::atomic<bool> failed{false};
  const int threads = threads_for(rows * row_size);
  // A few rows at a time when they are short; one, so that masked rows even out, when they are long.
  const int64_t step = std::max<int64_t>(1, std::min(rows / (4 * threads), 8192 / std::max<int64_t>(row_size, 1)));
  const Workspaces spaces(threads, workspace);
  parallel_for((rows + step - 1) / step, threads, [&](int64_t piece, int thread) {
    for (int64_t row = piece * step; row < std::min(rows, (piece + 1) * step) && !failed; ++row) {
      const RowResult result = work(row, spaces.of(thread));
      if (result.fault != RowFault::kNone && !failed.exchange(true)) tell(name, first + row, result, vocab);
    }
  });
  return failed ? 1 : 0;
}

uint64_t keep_largest(uint64_t* keys, int64_t count, int64_t k) {
  if (count > k) std::nth_element(keys, keys + k - 1, keys + count, std::greater<uint64_t>());
  return *std::min_element(keys, keys + k);
}

float* floats(const Workspaces& spaces, int thread) { return reinterpret_cast<float*>(spaces.of(thread)); }

// Tiles are sums of products: a thread pays off a little earlier than where each element costs an exponential.
int threads_for_products(int64_t rows, int64_t vocab, int64_t width) { return threads_for(rows * vocab * width / 16); }

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

void set_threads(int threads) { wanted_threads = threads; }

int run_loss(const LossTask& task, const char* name, int64_t first) {
  return for_rows(name, first, task.rows, task.vocab, task.vocab, kernels().loss_workspace(task),
                  [&](int64_t row, void* workspace) { return kernels().loss_row(task, row, workspace); });
}

void run_capture(const CaptureTask& task) {
  for_rows("TopkLogprobs", 0, task.rows, task.vocab, task.vocab, kernels().capture_workspace(task),
           [&](int64_t row, void* workspace) { return kernels().capture_row(task, row, workspace, keep_largest); });
}

void run_outer(const OuterTask& task) {
  const Kernels& table = kernels();
  const int64_t rows = task.rows, vocab = task.vocab, width = task.width;
  const int threads = threads_for_products(rows, vocab, width);
  const int64_t panels = (width + table.outer_panel - 1) / table.outer_panel;
  const Workspaces packed_b(1, panels * table.outer_panel * rows * sizeof(float));
  float* packed = floats(packed_b, 0);
  parallel_for(panels, threads_for(rows * width), [&](int64_t panel, int) { table.outer_pack(task, panel, packed); });
  // Strips of up to 192 rows: their part of `a` stays in the second cache. More than one a thread where V is small.
  const int64_t fair = (vocab + 4 * threads - 1) / (4 * threads), tile = table.outer_tile;
  const int64_t height = std::min<int64_t>(192, (fair + tile - 1) / tile * tile);
  const Workspaces packed_a(threads, height * std::min(rows, table.outer_depth) * sizeof(float));
  parallel_for((vocab + height - 1) / height, threads, [&](int64_t strip, int thread) {
    table.outer_strip(task, packed, strip * height, std::min(vocab, (strip + 1) * height), floats(packed_a, thread));
  });
}

void run_project(const ProjectTask& task) {
  const Kernels& table = kernels();
  const int64_t tiles = (task.rows + table.outer_tile - 1) / table.outer_tile;
  const Workspaces packed_a(1, tiles * table.outer_tile * task.width * sizeof(float));
  float* packed = floats(packed_a, 0);
  parallel_for(tiles, threads_for(task.rows * task.width),
               [&](int64_t index, int) { table.project_pack(task, index, packed); });
  const int threads = threads_for_products(task.rows, task.vocab, task.width);
  const Workspaces packed_b(threads, table.outer_panel * task.width * sizeof(float));
  parallel_for((task.vocab + table.outer_panel - 1) / table.outer_panel, threads, [&](int64_t index, int thread) {
    table.project_panel(task, packed, index, floats(packed_b, thread));
  });
}

void run_back_project(const BackProjectTask& task) {
  const Kernels& table = kernels();
  const int threads = threads_for_products(task.rows, task.vocab, task.width);
  // Each group of panels reads all of `a`; with few groups that is cheap, with two a thread they even out.
  const int64_t panels = (task.width + table.outer_panel - 1) / table.outer_panel;
  const int64_t group = std::max<int64_t>(1, panels / (2 * threads)) * table.outer_panel;
  const Workspaces packed(threads, (group + table.outer_tile) * table.outer_depth * sizeof(float));
  parallel_for((task.width + group - 1) / group, threads, [&](int64_t index, int thread) {
    table.back_project_columns(task, index * group, std::min(task.width, (index + 1) * group), floats(packed, thread));
  });
}

void run_scale(float* x, int64_t size, float factor) {
  constexpr int64_t kPiece = 1 << 16;
  parallel_for((size + kPiece - 1) / kPiece, threads_for(size), [&](int64_t piece, int) {
    kernels().scale(x + piece * kPiece, std::min(kPiece, size - piece * kPiece), factor);
  });
}

}  // namespace pangu
