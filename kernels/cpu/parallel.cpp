// A pool of sleeping helpers. The caller starts at once and waits only for helpers that took a part: one that the
// system has not woken by the time the work is done costs nothing. OpenMP's barrier would wait for it, and its
// helpers spin for milliseconds after each region, on the cores that MindSpore's next operator needs.

#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pangu {
namespace {

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

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t, int)>& body) {
  Job job{body, count, static_cast<int>(std::min<int64_t>(threads, count))};
  if (job.threads > 1) {
    pool->run(job);
  } else {
    job.work(0);
  }
}

}  // namespace pangu
