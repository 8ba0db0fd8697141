// What the three builds of isa_unit.cpp (see build.py) offer to operators.cpp: one table of functions each.
//
// Legend: N rows (tokens), V vocabulary, K teacher ids a row, D width of a hidden state.
#pragma once

#include <stdint.h>

namespace pangu {

enum class Type { kFloat32, kFloat16, kBfloat16 };
enum Divergence { kForwardKl = 0, kReverseKl = 1, kJsd = 2 };
enum Support { kTailBucket = 0, kRenormalised = 1, kTruncated = 2, kSampled = 3 };

constexpr double kLogFloor = -1e4;  // LOG_FLOOR of mindspore_impl/ops/log_floor.py

// One call of TopkDistillLoss or TopkDistillLossForward. With `gradient`, it overwrites the logits.
struct LossTask {
  void* logits_NV;
  Type type;
  int64_t rows, vocab, top_k;
  int64_t diagnostics_stride;  // between the four rows of diagnostics
  const int32_t* target_ids_N;
  const int32_t* teacher_ids_NK;
  const float* teacher_logp_NK;
  const float* teacher_tail_logp_N;
  const float* row_weight_N;
  float* ce_N;
  float* kd_N;
  float* diagnostics_4N;
  double ce_weight, kd_weight, temperature;
  int divergence, support;
  bool gradient;
};

enum class RowFault { kNone, kTarget, kTeacherId, kRepeatedId };
struct RowResult {
  RowFault fault;
  int64_t id;  // the id at fault
};

// One call of TopkLogprobs.
struct CaptureTask {
  const float* logits_NV;
  int64_t rows, vocab, top_k;
  double temperature;
  int32_t* ids_NK;
  float* logp_NK;
  float* tail_logp_N;
};

// c (+)= a times b. outer: c_VD (+)= a_NV^T b_ND; project: c_NV = a_ND b_VD^T; back: c_ND = a_NV b_VD.
struct Product {
  const float *a, *b;
  float* c;
  int64_t rows, vocab, width;
  bool accumulate = false;  // outer alone
};

struct Kernels {
  const char* name;
  int64_t (*loss_workspace)(const LossTask&);  // bytes a thread needs
  RowResult (*loss_row)(const LossTask&, int64_t row, void* workspace);
  int64_t (*capture_workspace)(const CaptureTask&);
  // `keep_largest(keys, count, k)` moves the k largest keys to the front and returns the smallest of them.
  RowResult (*capture_row)(const CaptureTask&, int64_t row, void* workspace,
                           uint64_t (*keep_largest)(uint64_t*, int64_t, int64_t));
  int64_t tile, panel;  // rows and columns of a tile of a product's result
  int64_t depth;        // rows of a and b that are multiplied at once
  void (*outer_pack)(const Product&, int64_t panel, float* packed_b);
  void (*outer_strip)(const Product&, const float* packed_b, int64_t first, int64_t last, float* packed_a);
  void (*project_pack)(const Product&, int64_t index, float* packed_a);  // a tile's rows at a time
  void (*project_panel)(const Product&, const float* packed_a, int64_t index, float* packed_b);
  void (*back_project_columns)(const Product&, int64_t first, int64_t last, float* packed);
  void (*scale)(float* x, int64_t count, float factor);
  void (*exponentials)(const float* x, float* y, int64_t count);
};

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace pangu
