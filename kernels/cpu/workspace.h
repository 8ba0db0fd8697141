// Memory of one call.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <memory>
#include <new>

namespace pangu {

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

}  // namespace pangu
