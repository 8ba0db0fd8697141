#include "tasks.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pangu {
namespace {

// ---- a pool of sleeping helpers ----
//
// The caller starts at once and waits only for helpers that took a part: one that the system has not woken by the time
// the work is done costs nothing. OpenMP's barrier would wait for it, and its helpers spin for milliseconds after each
// region, on the cores that MindSpore's next operator needs.

struct Job {
  const std::function<void(int64_t, int)>& body;
  const int64_t count;
  const int threads;
  std::atomic<int64_t> next{0};
  int joined = 1;   // threads that have taken part, the caller included
  int working = 0;  // helpers that are at it

  void work(int thread) {
    for (int64_t index = next++; index < count; index = next++) body(index, thread);
  }
};

class Pool {
 public:
  void run(Job& job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; helpers_ < job.threads - 1; ++helpers_) {
        try {
          std::thread([this] { help(); }).detach();
        } catch (const std::system_error&) {  // no more threads to be had: those that run do the work
          break;
        }
      }
      jobs_.push_back(&job);
    }
    for (int i = 1; i < job.threads; ++i) work_.notify_one();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());  // nobody joins from here on
    done_.wait(lock, [&job] { return job.working == 0; });
  }

  std::mutex mutex_;

 private:
  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      work_.wait(lock, [this] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      const int thread = job.joined++;
      if (job.joined >= job.threads) jobs_.erase(jobs_.begin());
      ++job.working;
      lock.unlock();
      job.work(thread);
      lock.lock();
      if (--job.working == 0) done_.notify_all();
    }
  }

  std::vector<Job*> jobs_;  // with room for helpers, oldest first
  int helpers_ = 0;
  std::condition_variable work_, done_;
};

// Never destroyed: helpers outlive main(). A forked child has no helpers, and gets a pool of its own.
Pool* pool = [] {
  pthread_atfork([] { pool->mutex_.lock(); }, [] { pool->mutex_.unlock(); }, [] { pool = new Pool; });
  return new Pool;
}();

// Calls body(index, thread) for every index in [0, count), in any order, on up to `threads` threads; `thread` is below
// `threads`. Returns when all calls have. `body` must not throw.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t, int)>& body) {
  Job job{body, count, static_cast<int>(std::min<int64_t>(threads, count))};
  if (job.threads > 1) {
    pool->run(job);
  } else {
    job.work(0);
  }
}

// ---- how many threads, and which instruction set ----

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

int64_t pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

int threads_for(int64_t elements) {
  const int wanted = wanted_threads.load();
  const int64_t cores = wanted > 0 ? wanted : std::max(1u, std::thread::hardware_concurrency());
  return static_cast<int>(std::max<int64_t>(1, std::min(cores, elements / kGrain)));
}

void tell(const char* name, int64_t row, RowResult result, int64_t vocab) {
  fprintf(stderr, "%s: row %" PRId64 ": %s id %" PRId64 " is %s (V = %" PRId64 ")\n", name, row,
          result.fault == RowFault::kTarget ? "target" : "teacher", result.id,
          result.fault == RowFault::kRepeatedId ? "given twice" : "outside the vocabulary", vocab);
}

// Runs work(row, workspace) for each row; the first fault that is met is told, and 1 returned.
int for_rows(const char* name, int64_t first, int64_t rows, int64_t row_size, int64_t vocab, int64_t workspace,
             const std::function<RowResult(int64_t, void*)>& work) {
  std::atomic<bool> failed{false};
  const int threads = threads_for(rows * row_size);
  // A few rows at a time when they are short; one, so that masked rows even out, when they are long.
  const int64_t step = std::max<int64_t>(1, std::min(rows / (4 * threads), 8192 / std::max<int64_t>(row_size, 1)));
  const Workspaces spaces(threads, workspace);
  parallel_for(pieces(rows, step), threads, [&](int64_t piece, int thread) {
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

// Tiles are sums of products: a thread pays off a little earlier than where each element costs an exponential.
int threads_for_product(const Product& task) { return threads_for(task.rows * task.vocab * task.width / 16); }

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

void run_outer(const Product& task) {
  const Kernels& table = kernels();
  const int64_t rows = task.rows, vocab = task.vocab, panels = pieces(task.width, table.panel);
  const int threads = threads_for_product(task);
  const Workspaces packed_b(1, panels * table.panel * rows * sizeof(float));
  float* packed = packed_b.floats(0);
  parallel_for(panels, threads_for(rows * task.width),
               [&](int64_t panel, int) { table.outer_pack(task, panel, packed); });
  // Strips of up to 192 rows: their part of `a` stays in the second cache. More than one a thread where V is small.
  const int64_t height = std::min<int64_t>(192, pieces(pieces(vocab, 4 * threads), table.tile) * table.tile);
  const Workspaces packed_a(threads, height * std::min(rows, table.depth) * sizeof(float));
  parallel_for(pieces(vocab, height), threads, [&](int64_t strip, int thread) {
    table.outer_strip(task, packed, strip * height, std::min(vocab, (strip + 1) * height), packed_a.floats(thread));
  });
}

void run_project(const Product& task) {
  const Kernels& table = kernels();
  const int64_t tiles = pieces(task.rows, table.tile);
  const int threads = threads_for_product(task);
  const Workspaces packed_a(1, tiles * table.tile * task.width * sizeof(float));
  const Workspaces packed_b(threads, table.panel * task.width * sizeof(float));
  float* packed = packed_a.floats(0);
  parallel_for(tiles, threads_for(task.rows * task.width),
               [&](int64_t index, int) { table.project_pack(task, index, packed); });
  parallel_for(pieces(task.vocab, table.panel), threads, [&](int64_t index, int thread) {
    table.project_panel(task, packed, index, packed_b.floats(thread));
  });
}

void run_back_project(const Product& task) {
  const Kernels& table = kernels();
  const int threads = threads_for_product(task);
  // Each group of panels reads all of `a`; with few groups that is cheap, with two a thread they even out.
  const int64_t group = std::max<int64_t>(1, pieces(task.width, table.panel) / (2 * threads)) * table.panel;
  const Workspaces packed(threads, (group + table.tile) * table.depth * sizeof(float));
  parallel_for(pieces(task.width, group), threads, [&](int64_t index, int thread) {
    table.back_project_columns(task, index * group, std::min(task.width, (index + 1) * group), packed.floats(thread));
  });
}

void run_scale(float* x, int64_t size, float factor) {
  constexpr int64_t kPiece = 1 << 16;
  parallel_for(pieces(size, kPiece), threads_for(size), [&](int64_t piece, int) {
    kernels().scale(x + piece * kPiece, std::min(kPiece, size - piece * kPiece), factor);
  });
}

}  // namespace pangu
