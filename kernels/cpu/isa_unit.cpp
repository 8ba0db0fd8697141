// Everything whose work grows with the vocabulary. build.py compiles this file once for each instruction set,
// PANGU_ISA, and kernels_<PANGU_ISA> is the one symbol that a build exports.

#include "capture_row.h"
#include "distill_row.h"
#include "products.h"

namespace {

void scale(float* x, int64_t count, float factor) { scale_block(x, count, factor); }

void exponentials(const float* x, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, exponential(load(x + i)));
  if (i < count) store_part(y + i, count - i, exponential(load_part(x + i, count - i, 0)));
}

}  // namespace

#define PANGU_JOIN(a, b) PANGU_JOIN_(a, b)
#define PANGU_JOIN_(a, b) a##b
#define PANGU_TEXT(name) PANGU_TEXT_(name)
#define PANGU_TEXT_(name) #name
#define PANGU_TABLE PANGU_JOIN(kernels_, PANGU_ISA)

namespace pangu {
extern const Kernels PANGU_TABLE;
const Kernels PANGU_TABLE = {
    PANGU_TEXT(PANGU_ISA), loss_workspace, loss_row,   capture_workspace, capture_row, kRows,
    kColumns,              kDepth,         outer_pack, outer_strip,       project_pack,      project_panel,
    back_project_columns,  scale,    exponentials,
};
}  // namespace pangu
