// The words of the device language that mean nothing on a host, the enumerations of the API, and half and bfloat16_t
// with IEEE rounding.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __aicore__
#define __gm__
#define __ubuf__
#define __NPU_ARCH__ 2201  // Atlas A2 and A3: vector cores that are separate from cube cores
#define __CCE_AICORE__ 220

using GM_ADDR = uint8_t*;
enum pipe_t : uint8_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_ALL, PIPE_FIX };
enum event_t : int8_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

namespace AscendC {

enum class RoundMode : uint8_t { CAST_NONE = 0, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };
enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX = 0, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class TPosition : uint8_t { GM, VECIN, VECOUT, VECCALC };

}  // namespace AscendC

namespace emulator {

using Round = AscendC::RoundMode;

template <typename To, typename From>
To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

// magnitude / 2^shift, rounded. Magnitudes of floats order like integers, so a carry runs into the exponent rightly.
inline uint32_t round_shift(uint32_t magnitude, int shift, bool negative, Round mode) {
    if (shift > 31) {
        magnitude = magnitude != 0;  // only "something is there" is left
        shift = 2;
    }
    const uint32_t quotient = magnitude >> shift, rest = magnitude & ((1u << shift) - 1), tie = 1u << (shift - 1);
    switch (mode) {
        case Round::CAST_ROUND: return quotient + (rest >= tie);
        case Round::CAST_FLOOR: return quotient + (rest && negative);
        case Round::CAST_CEIL: return quotient + (rest && !negative);
        case Round::CAST_TRUNC: return quotient;
        case Round::CAST_ODD: return quotient | (rest != 0);
        default: return quotient + (rest > tie || (rest == tie && (quotient & 1)));
    }
}

inline uint16_t float_to_bfloat16(float value, Round mode) {
    const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7fc0);
    return static_cast<uint16_t>(sign | round_shift(magnitude, 16, sign != 0, mode));
}

inline float bfloat16_to_float(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_half(float value, Round mode) {
    const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
    if (magnitude >= 0x7f800000) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
    uint32_t rounded;
    if (magnitude >= (113u << 23)) {  // 2^-14, the smallest normal half
        rounded = round_shift(magnitude - (112u << 23), 13, sign != 0, mode);
    } else {
        const int exponent = static_cast<int>(magnitude >> 23);
        const uint32_t significand = exponent ? (magnitude & 0x7fffff) | 0x800000 : magnitude;
        rounded = round_shift(significand, 13 + 113 - (exponent ? exponent : 1), sign != 0, mode);
    }
    const bool towards_zero = mode == Round::CAST_TRUNC || mode == Round::CAST_ODD ||
                              (mode == Round::CAST_FLOOR && !sign) || (mode == Round::CAST_CEIL && sign);
    if (rounded >= 0x7c00) rounded = towards_zero ? 0x7bff : 0x7c00;
    return static_cast<uint16_t>(sign | rounded);
}

inline float half_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31,
                   mantissa = bits & 1023;
    if (exponent == 31) return bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
    if (exponent) return bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

}  // namespace emulator

// As on the device, half computes in scalar code through float.
struct half {
    uint16_t bits;
    half() = default;
    template <typename N, typename = std::enable_if_t<std::is_arithmetic_v<N>>>
    half(N value) : bits(emulator::float_to_half(static_cast<float>(value), emulator::Round::CAST_RINT)) {}
    operator float() const { return emulator::half_to_float(bits); }
};

// No arithmetic and no conversion from float: ToFloat, ToBfloat16 and Cast are the ways that all versions have.
struct bfloat16_t {
    uint16_t bits;
    bfloat16_t() = default;
    template <typename N, typename = std::enable_if_t<std::is_integral_v<N>>>
    bfloat16_t(N value) : bits(emulator::float_to_bfloat16(static_cast<float>(value), emulator::Round::CAST_RINT)) {}
};

static_assert(sizeof(half) == 2 && sizeof(bfloat16_t) == 2);

namespace emulator {

template <typename T, typename... Allowed>
constexpr bool one_of = (std::is_same_v<T, Allowed> || ...);

}  // namespace emulator

namespace AscendC {

inline float ToFloat(const bfloat16_t& value) { return emulator::bfloat16_to_float(value.bits); }

inline bfloat16_t ToBfloat16(const float& value) {
    return emulator::bit_cast<bfloat16_t>(emulator::float_to_bfloat16(value, RoundMode::CAST_RINT));
}

}  // namespace AscendC
