// The work of one operator, shared out over threads. Legend and tasks: kernels.h.
#pragma once

#include <stdlib.h>

#include <memory>
#include <new>

#include "kernels.h"

namespace pangu {

// One piece of memory a thread, 64-byte aligned. A page exists once its thread has written to it.
class Workspaces {
 public:
  Workspaces(int threads, int64_t bytes) : stride_((bytes + 127) / 64 * 64) {
    memory_.reset(static_cast<char*>(aligned_alloc(64, threads * stride_)));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  void* of(int thread) const { return memory_.get() + thread * stride_; }
  float* floats(int thread) const { return static_cast<float*>(of(thread)); }

 private:
  struct Free {
    void operator()(char* memory) const { free(memory); }
  };
  int64_t stride_;
  std::unique_ptr<char, Free> memory_;
};

// The table of the widest instruction set that this processor has, or that PANGU_CPU_ISA asks for.
const Kernels& kernels();

// How many threads the operators use from now on; 0: all cores.
void set_threads(int threads);

// 0, or 1 when a row holds an id outside the vocabulary or one twice: told in one line on stderr, which names the
// operator and the row, counted from `first`.
int run_loss(const LossTask& task, const char* name, int64_t first);
void run_capture(const CaptureTask& task);
void run_outer(const Product& task);
void run_project(const Product& task);
void run_back_project(const Product& task);
void run_scale(float* x, int64_t size, float factor);

}  // namespace pangu
