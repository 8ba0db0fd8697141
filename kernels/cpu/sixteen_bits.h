// Rows of float16 and bfloat16 to float32 and back, rounded to nearest, ties to even. Plain loops that GCC vectorises.
#pragma once

#include "vector.h"

namespace {

void widen_bfloat16(const uint16_t* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = float_of(uint32_t{x[i]} << 16);
}

void narrow_bfloat16(const float* x, uint16_t* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(x[i]);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40;  // a NaN stays one
    y[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

void widen_float16(const uint16_t* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t sign = uint32_t{x[i] & 0x8000u} << 16, magnitude = x[i] & 0x7fffu;
    // Read as the top of a float, the exponent is 112 too small; the product mends that, subnormals included.
    const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
    const uint32_t special = magnitude << 13 | 0x7f800000;  // infinity or NaN
    y[i] = float_of(sign | (magnitude >= 0x7c00 ? special : finite));
  }
}

void narrow_float16(const float* x, uint16_t* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(x[i]), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // Below 2^-14 the grid is 2^-24: adding 0.5 leaves a float whose unit in the last place is that.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half;  // from 65520 on: infinity
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    y[i] = static_cast<uint16_t>(sign | half);
  }
}

}  // namespace
