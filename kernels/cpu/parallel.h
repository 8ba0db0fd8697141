// Work shared out over threads.
#pragma once
#ifdef PANGU_OPENMP
#include <omp.h>
#endif

#include <stdint.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace pangu {

// Calls body(index, thread) for every index in [0, count), in any order, on up to `threads` threads.
template <typename Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    for (int64_t index = next++; index < count; index = next++) body(index, thread);
  };
#ifdef PANGU_OPENMP
#pragma omp parallel num_threads(threads)
  work(omp_get_thread_num());
#else
  std::vector<std::thread> helpers;
  helpers.reserve(threads);
  try {
    for (int i = 1; i < threads; ++i) helpers.emplace_back(work, i);
  } catch (const std::system_error&) {  // no more threads to be had: those that run do the work
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
#endif
}

}  // namespace pangu
