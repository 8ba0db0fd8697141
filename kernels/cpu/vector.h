// Vectors of the width that this build of isa_unit.cpp may use, and exp() on them.
//
// GCC's vector types keep the source equal for AVX-512, AVX2, SSE2 and NEON; intrinsics stand only where GCC finds no
// single instruction. Everything is static: an inline function with linkage could be merged over the builds, and a
// wide instruction would then reach a processor that lacks it. For the same reason no C++ header is included here.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef float LooseFloats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline Floats load(const float* p) { return *reinterpret_cast<const LooseFloats*>(p); }
inline void store(float* p, Floats x) { *reinterpret_cast<LooseFloats*>(p) = x; }
inline Floats all(float x) { return x - Floats{}; }

// The first `count` < kLanes floats at p; the other lanes hold `rest`.
inline Floats load_part(const float* p, int64_t count, float rest) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = rest;
  memcpy(lanes, p, count * sizeof(float));
  return load(lanes);
}

inline void store_part(float* p, int64_t count, Floats x) {
  float lanes[kLanes];
  store(lanes, x);
  memcpy(p, lanes, count * sizeof(float));
}

// The larger of each pair; b where one of them is NaN.
inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__x86_64__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

inline bool any(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
  typedef int64_t Pair __attribute__((vector_size(16)));
  const Pair pair = reinterpret_cast<Pair>(mask);
  return (pair[0] | pair[1]) != 0;
#endif
}

inline float largest_lane(Floats x) {
  float top = x[0];
  for (int i = 1; i < kLanes; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

inline double sum_lanes(Floats x) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// exp(x) for x <= 88, at most 1.0 units in the last place off (1.2 without FMA); exactly 0 below -87.7, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln(2) / 2: exp(r) by a polynomial of degree 6 (minimax, 3e-9), times 2^n. The clamp at -88
// leaves n = -127, whose biased exponent is 0: that is the number 0, so nothing has to be selected away.
inline Floats exponential(Floats x) {
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = larger(all(-88.0f), x);             // this order keeps a NaN
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  Floats r = x - n * 0.693145752f;  // ln 2 in two parts; n times the first, which has 15 bits, is exact
  r = r - n * 1.42860677e-6f;
  Floats p = r * 1.381432e-3f + 8.368852e-3f;
  p = p * r + 4.16684e-2f;
  p = p * r + 0.1666652f;
  p = p * r + 0.49999994f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints power = (reinterpret_cast<Ints>(shifted) + 127) << 23;
  return p * reinterpret_cast<Floats>(power);
}

}  // namespace
