// The work of one operator, shared out over threads. Legend and tasks: kernels.h.
#pragma once

#include "kernels.h"

namespace pangu {

// The table of the widest instruction set that this processor has, or that PANGU_CPU_ISA asks for.
const Kernels& kernels();

// How many threads the operators use from now on; 0: all cores.
void set_threads(int threads);

// 0, or 1 when a row holds an id outside the vocabulary or one twice: told in one line on stderr, which names the
// operator and the row, counted from `first`.
int run_loss(const LossTask& task, const char* name, int64_t first);
void run_capture(const CaptureTask& task);
void run_outer(const OuterTask& task);
void run_project(const ProjectTask& task);
void run_back_project(const BackProjectTask& task);
void run_scale(float* x, int64_t size, float factor);

}  // namespace pangu
