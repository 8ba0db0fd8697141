// The K largest logits of a row with their log-probabilities, and the log-mass of all others, summed directly.
//
// One pass compares vectors with the K-th largest value so far and keeps what exceeds it, which is rare after the first
// thousand; a second one sums the exponentials of what stayed below, each block relative to its own largest logit.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

using namespace pangu;

constexpr int64_t kCaptureBlock = 4096;
constexpr int64_t kStride = 4 * kLanes;  // logits that are looked at together

// Keys sort like (logit, then lower id): the float's bits made monotonic, above the complement of the id.
inline uint64_t key_of(float x, int64_t id) {
  const uint32_t bits = bits_of(x + 0.0f);  // -0 and 0 are equal: make them one
  return uint64_t{bits >> 31 ? ~bits : bits | 0x80000000u} << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(id));
}

inline float logit_of(uint64_t key) {
  const uint32_t bits = key >> 32;
  return float_of(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

inline int64_t id_of(uint64_t key) { return static_cast<uint32_t>(~static_cast<uint32_t>(key)); }

int64_t room_for_keys(const CaptureTask& task) { return 3 * task.top_k + 2 * kStride; }

int64_t capture_workspace(const CaptureTask& task) { return room_for_keys(task) * sizeof(uint64_t); }

// Fills `keys` with candidates that hold the K largest; returns how many.
int64_t find_candidates(const CaptureTask& task, const float* x_V, uint64_t* keys,
                        uint64_t (*keep_largest)(uint64_t*, int64_t, int64_t)) {
  const int64_t vocab = task.vocab, top_k = task.top_k, room = room_for_keys(task);
  int64_t count = 0;
  float threshold = -INFINITY;  // an equal logit that comes later has the higher id: only larger ones are kept
  const auto take = [&](int64_t start, int64_t end) {
    for (int64_t i = start; i < end; ++i) {
      keys[count] = key_of(x_V[i], i);
      count += x_V[i] > threshold;
    }
  };
  for (int64_t start = 0; start < vocab; start += kStride) {
    if (start + kStride > vocab) {
      take(start, vocab);
    } else {
      const float* x = x_V + start;
      const Floats limit = all(threshold), v0 = load(x), v1 = load(x + kLanes), v2 = load(x + 2 * kLanes),
                   v3 = load(x + 3 * kLanes);
      if (!any(larger(larger(v0, v1), larger(v2, v3)) > limit)) continue;
      for (int64_t i = start; i < start + kStride; i += kLanes) {
        if (any(load(x_V + i) > limit)) take(i, i + kLanes);
      }
    }
    if (count >= room - kStride || (threshold == -INFINITY && count >= top_k)) {
      threshold = logit_of(keep_largest(keys, count, top_k));
      count = top_k;
    }
  }
  return count;
}

// Of one block: the sum of exp((x - top) / T) over the logits below `limit`, where `top` is the largest of them, and
// how many logits equal `limit`.
struct Below {
  double top, sum;
  int64_t equals;
};

Below sum_below(const float* x, int64_t count, float limit, float inverse) {
  const int64_t whole = count / kLanes * kLanes, part = count - whole;
  const Floats none = all(-INFINITY), bound = all(limit);
  const auto below = [&](Floats logits) { return logits >= bound ? none : logits; };  // NaN stays
  Floats largest = none, other = none;
  Ints equal{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= whole; i += 2 * kLanes) {
    const Floats first = load(x + i), second = load(x + i + kLanes);
    largest = larger(below(first), largest);
    other = larger(below(second), other);
    equal += (first == bound) + (second == bound);
  }
  for (; i < whole; i += kLanes) {
    largest = larger(below(load(x + i)), largest);
    equal += load(x + i) == bound;
  }
  const Floats rest = load_part(x + whole, part, -INFINITY);
  other = larger(below(rest), other);
  equal += rest == bound;
  const float top = largest_lane(larger(largest, other));
  const Floats shift = all(top == -INFINITY ? 0 : top);
  Floats total = exponential((below(rest) - shift) * inverse);
  for (i = 0; i < whole; i += kLanes) total += exponential((below(load(x + i)) - shift) * inverse);
  int64_t equals = 0;
  for (i = 0; i < kLanes; ++i) equals -= equal[i];
  return {top, sum_lanes(total), equals};
}

RowResult capture_row(const CaptureTask& task, int64_t row, void* memory,
                      uint64_t (*keep_largest)(uint64_t*, int64_t, int64_t)) {
  const int64_t vocab = task.vocab, top_k = task.top_k;
  const float* x_V = task.logits_NV + row * vocab;
  uint64_t* keys = static_cast<uint64_t*>(memory);
  const int64_t count = find_candidates(task, x_V, keys, keep_largest);
  if (count < top_k) {  // NaN and -inf are never candidates: the row is not a distribution, and must show it
    for (int64_t k = 0; k < top_k; ++k) {
      task.ids_NK[row * top_k + k] = static_cast<int32_t>(k);
      task.logp_NK[row * top_k + k] = NAN;
    }
    task.tail_logp_N[row] = NAN;
    return {RowFault::kNone, 0};
  }
  const float limit = logit_of(keep_largest(keys, count, top_k));
  // A plain insertion sort: what arrives in pieces of falling size is few.
  for (int64_t k = 1; k < top_k; ++k) {
    const uint64_t key = keys[k];
    int64_t at = k;
    for (; at > 0 && keys[at - 1] < key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
  }

  // The tail: everything below the K-th logit, and its equals that did not get in.
  double tail_top = -INFINITY, tail_sum = 0;
  const auto add = [&](double top, double sum) {
    if (top > tail_top) {
      tail_sum *= exp((tail_top - top) / task.temperature);
      tail_top = top;
    }
    // A block without a logit below the limit adds nothing; a NaN in it stays visible.
    tail_sum += top == -INFINITY ? sum : sum * exp((top - tail_top) / task.temperature);
  };
  int64_t equals = 0;
  for (int64_t k = 0; k < top_k; ++k) equals -= logit_of(keys[k]) == limit;
  const float inverse = static_cast<float>(1 / task.temperature);
  for (int64_t start = 0; start < vocab; start += kCaptureBlock) {
    const int64_t size = vocab - start < kCaptureBlock ? vocab - start : kCaptureBlock;
    const Below block = sum_below(x_V + start, size, limit, inverse);
    add(block.top, block.sum);
    equals += block.equals;
  }
  if (equals > 0) add(limit, static_cast<double>(equals));

  const double largest = logit_of(keys[0]);
  double norm = tail_top == -INFINITY ? tail_sum : tail_sum * exp((tail_top - largest) / task.temperature);
  for (int64_t k = 0; k < top_k; ++k) norm += exp((logit_of(keys[k]) - largest) / task.temperature);
  const double log_norm = log(norm);
  const auto floored = [](double logp) { return static_cast<float>(logp < kLogFloor ? kLogFloor : logp); };
  for (int64_t k = 0; k < top_k; ++k) {
    task.ids_NK[row * top_k + k] = static_cast<int32_t>(id_of(keys[k]));
    task.logp_NK[row * top_k + k] = floored((logit_of(keys[k]) - largest) / task.temperature - log_norm);
  }
  task.tail_logp_N[row] = floored((tail_top - largest) / task.temperature + log(tail_sum) - log_norm);
  return {RowFault::kNone, 0};
}

}  // namespace
