// c_VD (+)= a_NV^T b_ND, the gradient of a projection's weights, as a sum of outer products of rows.
//
// Each element of c is summed over n in order, in pieces of `kDepth`, whatever the strips: the result does not depend
// on the number of threads. b is packed once into panels of two vectors, each strip packs its part of a.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

using namespace pangu;

constexpr int kColumns = 2 * kLanes;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 12;  // 24 sums, 2 vectors of b and 1 of a: fits 32 registers
#else
constexpr int kRows = 6;  // 12 sums of 16 registers
#endif
constexpr int64_t kDepth = 512;  // a panel of b is 64 KiB at most: it stays in the second cache

void outer_pack(const OuterTask& task, int64_t panel, float* packed_b) {
  const int64_t first = panel * kColumns;
  const int64_t columns = task.width - first < kColumns ? task.width - first : kColumns;
  float* out = packed_b + panel * task.rows * kColumns;
  for (int64_t n = 0; n < task.rows; ++n, out += kColumns) {
    memcpy(out, task.b_ND + n * task.width + first, columns * sizeof(float));
    for (int64_t i = columns; i < kColumns; ++i) out[i] = 0;
  }
}

// c[kRows, kColumns] (+)= the sum over n of a[n]^T b[n].
inline void tile(const float* a, const float* b, int64_t depth, float* c, int64_t stride, bool add) {
  Floats sums[kRows][2] = {};
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    __builtin_prefetch(c + i * stride, 1);
    __builtin_prefetch(c + i * stride + kColumns - 1, 1);
  }
  for (int64_t n = 0; n < depth; ++n) {
    const Floats b0 = load(b + n * kColumns), b1 = load(b + n * kColumns + kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Floats factor = all(a[n * kRows + i]);
      sums[i][0] += factor * b0;
      sums[i][1] += factor * b1;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) {
      float* place = c + i * stride + j * kLanes;
      store(place, add ? load(place) + sums[i][j] : sums[i][j]);
    }
  }
}

// A tile at the edge, by way of a buffer.
void edge_tile(const float* a, const float* b, int64_t depth, float* c, int64_t stride, bool add, int64_t rows,
               int64_t columns) {
  float whole[kRows * kColumns];
  for (int64_t i = 0; add && i < rows; ++i) memcpy(whole + i * kColumns, c + i * stride, columns * sizeof(float));
  tile(a, b, depth, whole, kColumns, add);
  for (int64_t i = 0; i < rows; ++i) memcpy(c + i * stride, whole + i * kColumns, columns * sizeof(float));
}

// Rows [first, last) of c. `packed_a` has room for (last - first, rounded up to kRows) * kDepth floats.
void outer_strip(const OuterTask& task, const float* packed_b, int64_t first, int64_t last, float* packed_a) {
  const int64_t rows = task.rows, vocab = task.vocab, width = task.width;
  for (int64_t start = 0; start < rows || start == 0; start += kDepth) {
    const int64_t depth = rows - start < kDepth ? rows - start : kDepth;
    const bool add = task.accumulate || start > 0;
    for (int64_t v = first; v < last; v += kRows) {
      float* out = packed_a + (v - first) * depth;
      const float* a = task.a_NV + start * vocab + v;
      const int64_t size = last - v < kRows ? last - v : kRows;
      if (size < kRows) memset(out, 0, depth * kRows * sizeof(float));
      for (int64_t n = 0; n < depth; ++n, out += kRows, a += vocab) {
        memcpy(out, a, size == kRows ? kRows * sizeof(float) : size * sizeof(float));
      }
    }
    for (int64_t column = 0; column < width; column += kColumns) {
      const float* b = packed_b + column * rows + start * kColumns;
      const int64_t columns = width - column < kColumns ? width - column : kColumns;
      for (int64_t v = first; v < last; v += kRows) {
        const int64_t size = last - v < kRows ? last - v : kRows;
        const float* a = packed_a + (v - first) * depth;
        float* c = task.c_VD + v * width + column;
        if (size == kRows && columns == kColumns) {
          tile(a, b, depth, c, width, add);
        } else {
          edge_tile(a, b, depth, c, width, add, size, columns);
        }
      }
    }
  }
}

}  // namespace
