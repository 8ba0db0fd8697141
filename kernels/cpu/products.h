// The products around the logits, which operators.cpp names: see Product in kernels.h.
//
// Each element of a result is summed in order, in pieces of `kDepth`, whatever the strips: it does not depend on the
// number of threads. The factors are packed into panels of kRows or kColumns, so that a tile reads memory in order.
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

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// out[k][i] = x[k][i] for `depth` rows of x that lie `stride` apart; 0 from column `count` to kWidth.
template <int kWidth>
void pack(const float* x, int64_t stride, int64_t count, int64_t depth, float* out) {
  if (count < kWidth) memset(out, 0, depth * kWidth * sizeof(float));
  for (int64_t k = 0; k < depth; ++k, out += kWidth, x += stride) {
    if (count == kWidth) {
      memcpy(out, x, kWidth * sizeof(float));  // of constant size: some vector moves
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = x[i];
    }
  }
}

// The same of x's transpose: out[k][i] = x[i][k].
template <int kWidth>
void pack_transposed(const float* x, int64_t stride, int64_t count, int64_t depth, float* out) {
  if (count < kWidth) memset(out, 0, depth * kWidth * sizeof(float));
  for (int64_t start = 0; start < depth; start += 16) {  // a cache line of each row at a time
    const int64_t end = smaller(start + 16, depth);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = start; k < end; ++k) out[k * kWidth + i] = x[i * stride + k];
    }
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

// The same where c ends after `rows` and `columns`: a tile at the edge goes by way of a buffer.
void multiply(const float* a, const float* b, int64_t depth, float* c, int64_t stride, bool add, int64_t rows,
              int64_t columns) {
  if (rows >= kRows && columns >= kColumns) return tile(a, b, depth, c, stride, add);
  float whole[kRows * kColumns];
  rows = smaller(rows, kRows);
  columns = smaller(columns, kColumns);
  for (int64_t i = 0; add && i < rows; ++i) memcpy(whole + i * kColumns, c + i * stride, columns * sizeof(float));
  tile(a, b, depth, whole, kColumns, add);
  for (int64_t i = 0; i < rows; ++i) memcpy(c + i * stride, whole + i * kColumns, columns * sizeof(float));
}

// ---- outer: b is packed once into panels of kColumns, each strip packs its part of a ----

void outer_pack(const Product& task, int64_t panel, float* packed_b) {
  const int64_t first = panel * kColumns, columns = smaller(task.width - first, kColumns);
  pack<kColumns>(task.b + first, task.width, columns, task.rows, packed_b + first * task.rows);
}

// Rows [first, last) of c. `packed_a` has room for (last - first, rounded up to kRows) * kDepth floats.
void outer_strip(const Product& task, const float* packed_b, int64_t first, int64_t last, float* packed_a) {
  const int64_t rows = task.rows, vocab = task.vocab, width = task.width;
  for (int64_t start = 0; start < rows || start == 0; start += kDepth) {
    const int64_t depth = smaller(rows - start, kDepth);
    for (int64_t v = first; v < last; v += kRows) {
      pack<kRows>(task.a + start * vocab + v, vocab, smaller(last - v, kRows), depth, packed_a + (v - first) * depth);
    }
    for (int64_t column = 0; column < width; column += kColumns) {
      const float* b = packed_b + column * rows + start * kColumns;
      for (int64_t v = first; v < last; v += kRows) {
        multiply(packed_a + (v - first) * depth, b, depth, task.c + v * width + column, width,
                 task.accumulate || start > 0, last - v, width - column);
      }
    }
  }
}

// ---- project: a is packed once into panels of kRows, each panel of columns packs its part of b ----

void project_pack(const Product& task, int64_t index, float* packed_a) {
  const int64_t first = index * kRows, width = task.width;
  pack_transposed<kRows>(task.a + first * width, width, smaller(task.rows - first, kRows), width,
                         packed_a + first * width);
}

// Columns [index * kColumns, ...) of c. `packed_b` has room for width * kColumns floats.
void project_panel(const Product& task, const float* packed_a, int64_t index, float* packed_b) {
  const int64_t first = index * kColumns, width = task.width, columns = smaller(task.vocab - first, kColumns);
  pack_transposed<kColumns>(task.b + first * width, width, columns, width, packed_b);
  for (int64_t start = 0; start < width; start += kDepth) {
    const int64_t depth = smaller(width - start, kDepth);
    for (int64_t n = 0; n < task.rows; n += kRows) {
      multiply(packed_a + n * width + start * kRows, packed_b + start * kColumns, depth,
               task.c + n * task.vocab + first, task.vocab, start > 0, task.rows - n, columns);
    }
  }
}

// ---- back: columns [first, last) of c; `first` is a multiple of kColumns ----

// `packed` has room for kDepth * (last - first, rounded up to kColumns) floats of b, then kDepth * kRows of a.
void back_project_columns(const Product& task, int64_t first, int64_t last, float* packed) {
  const int64_t width = task.width, vocab = task.vocab;
  float* packed_a = packed + (last - first + kColumns - 1) / kColumns * kColumns * kDepth;
  for (int64_t start = 0; start < vocab; start += kDepth) {
    const int64_t depth = smaller(vocab - start, kDepth);
    for (int64_t column = first; column < last; column += kColumns) {
      pack<kColumns>(task.b + start * width + column, width, smaller(last - column, kColumns), depth,
                     packed + (column - first) * kDepth);
    }
    for (int64_t n = 0; n < task.rows; n += kRows) {
      pack_transposed<kRows>(task.a + n * vocab + start, vocab, smaller(task.rows - n, kRows), depth, packed_a);
      for (int64_t column = first; column < last; column += kColumns) {
        multiply(packed_a, packed + (column - first) * kDepth, depth, task.c + n * width + column, width, start > 0,
                 task.rows - n, last - column);
      }
    }
  }
}

}  // namespace
