// Cross-entropy and top-k divergence of one row of logits, and their gradient. The mathematics is that of
// mindspore_impl/losses/oracle.py.
//
// The label and the support are taken out of the row first; what is left, the rest, is summed alone: no mass is ever
// 1 - sum. One pass turns each block of the rest into exponentials relative to the block's own largest logit, in place;
// the K-wide part is in double; one more pass multiplies each block by its coefficient; the K+1 values are put back.
// At T = 1 that is one exponential an element. Otherwise a second one, at T = 1, goes to a row of the workspace.
#pragma once

#include "kernels.h"
#include "sixteen_bits.h"
#include "vector.h"

namespace {

using namespace pangu;

constexpr int64_t kBlock = 4096;  // 16 KiB: stays in the first cache from its maximum to its exponentials

struct Block {
  double top;        // largest logit; -inf when nothing is left of the block
  double sum, cool;  // sums of exp(x - top) and exp((x - top) / T)
};

struct Workspace {
  float* row_V;   // where the exponentials go; the logits themselves when the gradient overwrites float32
  float* wide_V;  // exponentials at T = 1 when T is another
  Block* blocks;
  int32_t* ids_K;
  double *log_p_K, *z_K, *slope_K, *grad_K;
};

bool in_place(const LossTask& task) { return task.gradient && task.type == Type::kFloat32; }

// `count` elements of the memory from `*start` on, which moves to the next multiple of 64 bytes.
template <typename T>
void take(T*& part, int64_t count, char** start) {
  part = reinterpret_cast<T*>(*start);
  *start += (count * sizeof(T) + 63) / 64 * 64;
}

// Lays the parts out from `start` and returns where they end.
char* lay_out(const LossTask& task, char* start, Workspace* space) {
  take(space->row_V, in_place(task) ? 0 : task.vocab, &start);
  take(space->wide_V, task.temperature == 1 ? 0 : task.vocab, &start);
  take(space->blocks, task.vocab / kBlock + 1, &start);
  take(space->ids_K, task.top_k, &start);
  take(space->log_p_K, task.top_k, &start);
  take(space->z_K, task.top_k, &start);
  take(space->slope_K, task.top_k, &start);
  take(space->grad_K, task.top_k, &start);
  return start;
}

int64_t loss_workspace(const LossTask& task) {
  Workspace space;
  return lay_out(task, nullptr, &space) - static_cast<char*>(nullptr);
}

double log_add(double a, double b) {
  if (a == -INFINITY) return b;
  if (b == -INFINITY) return a;
  const double top = a > b ? a : b;
  return top + log(exp(a - top) + exp(b - top));
}

// Exponentials of one block relative to its largest logit, in place; those at T = 1 go to `wide` when `inverse` != 1.
// `next` is prefetched meanwhile: memory and arithmetic then overlap.
template <bool kCool>
Block exponentiate(float* x, float* wide, int64_t count, float inverse, const float* next) {
  const int64_t whole = count / kLanes * kLanes, part = count - whole;
  const Floats none = all(-INFINITY);
  Floats top0 = none, top1 = none, top2 = none, top3 = none;
  int64_t i = 0;
  for (; i + 4 * kLanes <= whole; i += 4 * kLanes) {
    top0 = larger(load(x + i), top0);
    top1 = larger(load(x + i + kLanes), top1);
    top2 = larger(load(x + i + 2 * kLanes), top2);
    top3 = larger(load(x + i + 3 * kLanes), top3);
  }
  for (; i < whole; i += kLanes) top0 = larger(load(x + i), top0);
  if (part) top1 = larger(load_part(x + whole, part, -INFINITY), top1);
  const float top = largest_lane(larger(larger(top0, top1), larger(top2, top3)));

  const Floats shift = all(top == -INFINITY ? 0 : top);
  Floats sum{}, cool{};
  const auto step = [&](Floats logits, Floats* at_one) {
    const Floats below = logits - shift;
    const Floats e = exponential(kCool ? below * inverse : below);
    cool += e;
    if (kCool) {
      *at_one = exponential(below);
      sum += *at_one;
    }
    return e;
  };
  Floats at_one{};
  for (i = 0; i < whole; i += kLanes) {
    __builtin_prefetch(next + i);
    store(x + i, step(load(x + i), &at_one));
    if (kCool) store(wide + i, at_one);
  }
  if (part) {
    store_part(x + whole, part, step(load_part(x + whole, part, -INFINITY), &at_one));
    if (kCool) store_part(wide + whole, part, at_one);
  }
  const double cool_sum = sum_lanes(cool);
  return {top, kCool ? sum_lanes(sum) : cool_sum, cool_sum};
}

void scale_block(float* x, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

void combine_block(float* x, const float* wide, int64_t count, float factor, float wide_factor) {
  for (int64_t i = 0; i < count; ++i) x[i] = factor * x[i] + wide_factor * wide[i];
}

// One bucket's contribution to D(p, q), and dD / d(log q) into *slope.
double diverge(int divergence, double log_p, double log_q, double* slope) {
  const double p = exp(log_p);
  if (divergence == kForwardKl) {
    *slope = -p;
    return p * (log_p - log_q);
  }
  const double q = exp(log_q);
  if (divergence == kReverseKl) {
    *slope = q * (log_q - log_p);
    return *slope;
  }
  const double log_m = log_add(log_p, log_q) - M_LN2;
  *slope = 0.5 * q * (log_q - log_m);
  return 0.5 * p * (log_p - log_m) + *slope;
}

struct Label {
  int64_t place;  // its place among the K ids, -1 when it is none of them
  double z;       // its logit
};

// What the epilogue leaves for the gradient: on the rest of the row it is wide * exp(x - top) + cool * exp((x - top)/T)
// with the rest's largest logit `top`; the label's own value when it lies outside the support; grad_K inside.
struct Slopes {
  double wide, cool, label;
};

// The K-wide part in double. `count` ids are in the support; rest: top, sum and cool of the whole rest.
Slopes finish_row(const LossTask& task, int64_t row, const Workspace& space, int64_t count, Label label, Block rest) {
  const double temperature = task.temperature, weight = task.row_weight_N[row];
  const double *log_p_K = space.log_p_K, log_p_tail = task.teacher_tail_logp_N[row];
  double *z_K = space.z_K, *slope_K = space.slope_K, *grad_K = space.grad_K;
  const bool lone = label.place < 0;

  // From here on logits are relative to the row's largest one.
  double top = rest.top;
  for (int64_t k = 0; k < count; ++k) top = z_K[k] > top ? z_K[k] : top;
  if (lone) top = label.z > top ? label.z : top;
  double best_p = -INFINITY, best_z = -INFINITY;
  for (int64_t k = 0; k < count; ++k) {
    z_K[k] -= top;
    if (log_p_K[k] > best_p) best_p = log_p_K[k], best_z = -INFINITY;
    if (log_p_K[k] == best_p && z_K[k] > best_z) best_z = z_K[k];
  }
  label.z -= top;
  const double rest_top = rest.top - top;
  const double log_rest = rest.top == -INFINITY && !(rest.sum > 0) ? -INFINITY + rest.sum : rest_top + log(rest.sum);

  // Cross-entropy at T = 1. `others` is the mass beside the label's, never 1 - q.
  double others = exp(log_rest);
  for (int64_t k = 0; k < count; ++k) {
    grad_K[k] = exp(z_K[k]);
    if (k != label.place) others += grad_K[k];
  }
  const double label_mass = exp(label.z), norm = others + label_mass;
  task.ce_N[row] = static_cast<float>(label_mass > 0.5 ? log1p(others / label_mass) : log(norm) - label.z);
  const double ce_scale = weight * task.ce_weight / norm;
  Slopes slopes{ce_scale * exp(rest_top), 0, -ce_scale * others};

  // Everything at T from here on; at T = 1 the exponentials are those above.
  double log_rest_cool = log_rest, norm_cool = norm, label_cool = label_mass, student_mass = 0;
  if (temperature != 1) {
    log_rest_cool = rest.top == -INFINITY ? log_rest : rest_top / temperature + log(rest.cool);
    label.z /= temperature;
    label_cool = exp(label.z);
    norm_cool = exp(log_rest_cool) + (lone ? label_cool : 0);
    for (int64_t k = 0; k < count; ++k) {
      z_K[k] /= temperature;
      norm_cool += exp(z_K[k]);
    }
  }
  const double log_norm_cool = log(norm_cool);
  const bool tail_exists = count < task.vocab;
  const double log_tail = lone ? log_add(log_rest_cool, label.z) : log_rest_cool;

  double log_p_shift = 0, log_q_shift = log_norm_cool;  // log-masses are log_p_K - the one and z_K - the other
  if (task.support == kRenormalised && count) {
    log_p_shift = log_q_shift = -INFINITY;
    for (int64_t k = 0; k < count; ++k) {
      log_p_shift = log_add(log_p_shift, log_p_K[k]);
      log_q_shift = log_add(log_q_shift, z_K[k]);
    }
  }
  double value = 0, slope_sum = 0, tail_slope = 0;
  for (int64_t k = 0; k < count; ++k) {
    value += diverge(task.divergence, log_p_K[k] - log_p_shift, z_K[k] - log_q_shift, &slope_K[k]);
    slope_sum += slope_K[k];
  }
  if (task.support == kTailBucket && tail_exists) {
    const double log_q_tail = count ? log_tail - log_norm_cool : 0;
    value += diverge(task.divergence, log_p_tail, log_q_tail, &tail_slope);
    slope_sum += tail_slope;
  }
  task.kd_N[row] = static_cast<float>(temperature * temperature * value);

  const double kd_scale = weight * task.kd_weight * temperature;
  double entropy = 0, teacher_mass = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double p = exp(log_p_K[k]), q_cool = exp(z_K[k] - log_norm_cool);
    teacher_mass += p;
    entropy -= p * log_p_K[k];
    student_mass += q_cool;
    const double q = task.support == kRenormalised ? exp(z_K[k] - log_q_shift) : q_cool;
    const double ce_grad = k == label.place ? -others : grad_K[k];
    grad_K[k] = ce_scale * ce_grad + kd_scale * (slope_K[k] - q * slope_sum);
  }
  if (count && task.support != kRenormalised) {  // without any id there is one bucket of mass 1, or none: no gradient
    const double everywhere = -slope_sum / norm_cool, in_tail = kd_scale * tail_slope;
    if (lone) {
      slopes.label += kd_scale * everywhere * label_cool;
      if (tail_slope != 0) slopes.label += in_tail * exp(label.z - log_tail);
    }
    if (rest.top != -INFINITY) {
      slopes.cool = kd_scale * everywhere * exp(rest_top / temperature);
      if (tail_slope != 0) slopes.cool += in_tail * exp(rest_top / temperature - log_tail);
    }
  }
  if (tail_exists) entropy -= exp(log_p_tail) * log_p_tail;
  const double agreement = count && best_z >= 0;
  const double diagnostics[4] = {entropy, teacher_mass, student_mass, agreement};
  float* written = task.diagnostics_4N + row;
  for (int i = 0; i < 4; ++i) written[i * task.diagnostics_stride] = static_cast<float>(diagnostics[i]);
  return slopes;
}

void zero_row(const LossTask& task, int64_t row) {
  task.ce_N[row] = task.kd_N[row] = 0;
  for (int i = 0; i < 4; ++i) task.diagnostics_4N[i * task.diagnostics_stride + row] = 0;
  if (!task.gradient) return;
  const int64_t bytes = task.vocab * (task.type == Type::kFloat32 ? 4 : 2);
  memset(static_cast<char*>(task.logits_NV) + row * bytes, 0, bytes);
}

// The row as float32, where it can be written.
float* open_row(const LossTask& task, int64_t row, const Workspace& space) {
  const int64_t start = row * task.vocab;
  float* floats = static_cast<float*>(task.logits_NV) + start;
  const uint16_t* halves = static_cast<uint16_t*>(task.logits_NV) + start;
  if (in_place(task)) return floats;
  if (task.type == Type::kFloat32) memcpy(space.row_V, floats, task.vocab * sizeof(float));
  if (task.type == Type::kFloat16) widen_float16(halves, space.row_V, task.vocab);
  if (task.type == Type::kBfloat16) widen_bfloat16(halves, space.row_V, task.vocab);
  return space.row_V;
}

void close_row(const LossTask& task, int64_t row, const float* x_V) {
  uint16_t* halves = static_cast<uint16_t*>(task.logits_NV) + row * task.vocab;
  if (task.type == Type::kFloat16) narrow_float16(x_V, halves, task.vocab);
  if (task.type == Type::kBfloat16) narrow_bfloat16(x_V, halves, task.vocab);
}

// Moves the support and the label out of the row, leaving -inf; *count is the size of the support.
RowResult take_out(const LossTask& task, int64_t row, const Workspace& space, float* x_V, int64_t* count,
                   Label* label) {
  const int32_t target = task.target_ids_N[row];
  if (target < 0 || target >= task.vocab) return {RowFault::kTarget, target};
  *count = 0;
  *label = {-1, 0};
  for (int64_t k = 0; k < task.top_k; ++k) {
    const int32_t id = task.teacher_ids_NK[row * task.top_k + k];
    if (id < 0) continue;
    if (id >= task.vocab) return {RowFault::kTeacherId, id};
    if (x_V[id] == -INFINITY) {  // taken out before, if the input is finite
      for (int64_t j = 0; j < *count; ++j) {
        if (space.ids_K[j] == id) return {RowFault::kRepeatedId, id};
      }
    }
    if (id == target) *label = {*count, x_V[id]};
    space.ids_K[*count] = id;
    space.log_p_K[*count] = task.teacher_logp_NK[row * task.top_k + k];
    space.z_K[*count] = x_V[id];
    x_V[id] = -INFINITY;
    ++*count;
  }
  if (label->place < 0) {
    label->z = x_V[target];
    x_V[target] = -INFINITY;
  }
  return {RowFault::kNone, 0};
}

RowResult loss_row(const LossTask& task, int64_t row, void* memory) {
  if (task.row_weight_N[row] == 0) {
    zero_row(task, row);
    return {RowFault::kNone, 0};
  }
  Workspace space;
  lay_out(task, static_cast<char*>(memory), &space);
  float* x_V = open_row(task, row, space);
  int64_t count;
  Label label;
  const RowResult result = take_out(task, row, space, x_V, &count, &label);
  if (result.fault != RowFault::kNone) return result;

  const int64_t vocab = task.vocab;
  const bool cool = task.temperature != 1;
  const float inverse = static_cast<float>(1 / task.temperature);
  Block rest{-INFINITY, 0, 0};
  for (int64_t start = 0, b = 0; start < vocab; start += kBlock, ++b) {
    const int64_t size = vocab - start < kBlock ? vocab - start : kBlock;
    const float* next = x_V + start + size;
    space.blocks[b] = cool ? exponentiate<true>(x_V + start, space.wide_V + start, size, inverse, next)
                           : exponentiate<false>(x_V + start, nullptr, size, 1, next);
    rest.top = space.blocks[b].top > rest.top ? space.blocks[b].top : rest.top;
  }
  const int64_t blocks = (vocab + kBlock - 1) / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    Block& block = space.blocks[b];
    const double below = block.top == -INFINITY ? -INFINITY : block.top - rest.top;
    const double shrink = exp(below), shrink_cool = cool ? exp(below / task.temperature) : shrink;
    rest.sum += block.sum * shrink;
    rest.cool += block.cool * shrink_cool;
    block.sum = shrink;  // from here on: what the block's exponentials are multiplied by
    block.cool = shrink_cool;
  }
  const Slopes slopes = finish_row(task, row, space, count, label, rest);
  if (!task.gradient) return result;

  for (int64_t start = 0, b = 0; start < vocab; start += kBlock, ++b) {
    const int64_t size = vocab - start < kBlock ? vocab - start : kBlock;
    const Block& block = space.blocks[b];
    if (cool) {
      combine_block(x_V + start, space.wide_V + start, size, static_cast<float>(slopes.cool * block.cool),
                    static_cast<float>(slopes.wide * block.sum));
    } else {
      scale_block(x_V + start, size, static_cast<float>((slopes.wide + slopes.cool) * block.sum));
    }
  }
  for (int64_t k = 0; k < count; ++k) x_V[space.ids_K[k]] = static_cast<float>(space.grad_K[k]);
  if (label.place < 0) x_V[task.target_ids_N[row]] = static_cast<float>(slopes.label);
  close_row(task, row, x_V);
  return result;
}

}  // namespace
