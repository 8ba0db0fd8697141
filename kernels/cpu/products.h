// The two products around the logits: out_NV = hidden_ND weight_VD^T, and the gradient of the hidden states,
// c_ND = a_NV weight_VD.
//
// The tiles are those of outer.h. Each element of a result is summed in order, in pieces of `kDepth`: it does not depend
// on the number of threads.
#pragma once

#include "outer.h"

namespace {

using namespace pangu;

// Rows [index * kRows, ...) of the hidden states, width by width.
void project_pack(const ProjectTask& task, int64_t index, float* packed_a) {
  const int64_t first = index * kRows, size = task.rows - first < kRows ? task.rows - first : kRows;
  float* out = packed_a + first * task.width;
  for (int64_t d = 0; d < task.width; ++d, out += kRows) {
    for (int64_t i = 0; i < kRows; ++i) out[i] = i < size ? task.hidden_ND[(first + i) * task.width + d] : 0;
  }
}

// Columns [index * kColumns, ...) of out. `packed_b` has room for width * kColumns floats.
void project_panel(const ProjectTask& task, const float* packed_a, int64_t index, float* packed_b) {
  const int64_t first = index * kColumns, width = task.width;
  const int64_t columns = task.vocab - first < kColumns ? task.vocab - first : kColumns;
  if (columns < kColumns) memset(packed_b, 0, width * kColumns * sizeof(float));
  // A cache line of each row at a time: what is written stays in the first cache.
  for (int64_t start = 0; start < width; start += 16) {
    const int64_t end = start + 16 < width ? start + 16 : width;
    for (int64_t j = 0; j < columns; ++j) {
      const float* row = task.weight_VD + (first + j) * width;
      for (int64_t d = start; d < end; ++d) packed_b[d * kColumns + j] = row[d];
    }
  }
  for (int64_t start = 0; start < width; start += kDepth) {
    const int64_t depth = width - start < kDepth ? width - start : kDepth;
    for (int64_t n = 0; n < task.rows; n += kRows) {
      const int64_t size = task.rows - n < kRows ? task.rows - n : kRows;
      const float *a = packed_a + n * width + start * kRows, *b = packed_b + start * kColumns;
      float* out = task.out_NV + n * task.vocab + first;
      if (size == kRows && columns == kColumns) {
        tile(a, b, depth, out, task.vocab, start > 0);
      } else {
        edge_tile(a, b, depth, out, task.vocab, start > 0, size, columns);
      }
    }
  }
}

// Columns [first, last) of c_ND; `first` is a multiple of kColumns. `packed` has room for kDepth * (last - first, rounded
// up to kColumns) floats of the weights, then kDepth * kRows of a.
void back_project_columns(const BackProjectTask& task, int64_t first, int64_t last, float* packed) {
  const int64_t panels = (last - first + kColumns - 1) / kColumns;
  float *packed_b = packed, *packed_a = packed + panels * kColumns * kDepth;
  for (int64_t start = 0; start < task.vocab; start += kDepth) {
    const int64_t depth = task.vocab - start < kDepth ? task.vocab - start : kDepth;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t column = first + panel * kColumns, columns = last - column < kColumns ? last - column : kColumns;
      float* out = packed_b + panel * kColumns * kDepth;
      if (columns < kColumns) memset(out, 0, depth * kColumns * sizeof(float));
      for (int64_t v = 0; v < depth; ++v) {
        memcpy(out + v * kColumns, task.weight_VD + (start + v) * task.width + column, columns * sizeof(float));
      }
    }
    for (int64_t n = 0; n < task.rows; n += kRows) {
      const int64_t size = task.rows - n < kRows ? task.rows - n : kRows;
      if (size < kRows) memset(packed_a, 0, depth * kRows * sizeof(float));
      for (int64_t v = 0; v < depth; v += 16) {  // a cache line of each row at a time
        const int64_t end = v + 16 < depth ? v + 16 : depth;
        for (int64_t i = 0; i < size; ++i) {
          const float* row = task.a_NV + (n + i) * task.vocab + start;
          for (int64_t at = v; at < end; ++at) packed_a[at * kRows + i] = row[at];
        }
      }
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t column = first + panel * kColumns, columns = last - column < kColumns ? last - column : kColumns;
        const float* b = packed_b + panel * kColumns * kDepth;
        float* c = task.c_ND + n * task.width + column;
        if (size == kRows && columns == kColumns) {
          tile(packed_a, b, depth, c, task.width, start > 0);
        } else {
          edge_tile(packed_a, b, depth, c, task.width, start > 0, size, columns);
        }
      }
    }
  }
}

}  // namespace
