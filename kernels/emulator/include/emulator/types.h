// half and bfloat16_t with IEEE rounding, and the enumerations of the API.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "attributes.h"

namespace AscendC {

enum class RoundMode : uint8_t { CAST_NONE = 0, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };
enum class CMPMODE : uint8_t { LT = 0, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR = 0, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };
enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX = 0, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class MaskMode : uint8_t { NORMAL = 0, COUNTER };
enum class TPosition : uint8_t {
    GM,
    A1,
    A2,
    B1,
    B2,
    C1,
    C2,
    CO1,
    CO2,
    VECIN,
    VECOUT,
    VECCALC,
    LCM,
    SPM,
    SHM,
    TSCM,
    C2PIPE2GM,
    MAX
};
using QuePosition = TPosition;
enum class CacheLine : uint64_t { SINGLE_CACHE_LINE = 0, ENTIRE_DATA_CACHE };
enum class DcciDst : uint64_t { CACHELINE_ALL = 0, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };
enum class MemDsbT : uint64_t { ALL = 0, DDR, UB, SEQ };
constexpr uint64_t MASK_PLACEHOLDER = 0;

}  // namespace AscendC

namespace emulator {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// magnitude / 2^shift, rounded. Magnitudes of floats order like integers, so a carry runs into the exponent rightly.
inline uint32_t round_shift(uint32_t magnitude, int shift, bool negative, AscendC::RoundMode mode) {
    using Mode = AscendC::RoundMode;
    if (shift > 31) {
        magnitude = magnitude != 0;  // only "something is there" is left
        shift = 2;
    }
    const uint32_t quotient = magnitude >> shift, rest = magnitude & ((1u << shift) - 1), tie = 1u << (shift - 1);
    bool up = false;
    switch (mode) {
        case Mode::CAST_NONE:
        case Mode::CAST_RINT:
            up = rest > tie || (rest == tie && (quotient & 1));
            break;
        case Mode::CAST_ROUND:
            up = rest >= tie;
            break;
        case Mode::CAST_FLOOR:
            up = rest && negative;
            break;
        case Mode::CAST_CEIL:
            up = rest && !negative;
            break;
        case Mode::CAST_ODD:
            return quotient | (rest ? 1 : 0);
        case Mode::CAST_TRUNC:
            break;
    }
    return quotient + up;
}

inline uint16_t float_to_bfloat16(float value, AscendC::RoundMode mode) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7fc0;
    return static_cast<uint16_t>(sign | round_shift(magnitude, 16, sign != 0, mode));
}

inline float bfloat16_to_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_half(float value, AscendC::RoundMode mode) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude == 0x7f800000) return sign | 0x7c00;
    uint32_t rounded;
    if (magnitude >= (113u << 23)) {  // 2^-14, the smallest normal half
        rounded = round_shift(magnitude - (112u << 23), 13, sign != 0, mode);
    } else {
        const int exponent = static_cast<int>(magnitude >> 23);
        const uint32_t significand = exponent ? (magnitude & 0x7fffff) | 0x800000 : magnitude;
        rounded = round_shift(significand, 13 + 113 - (exponent ? exponent : 1), sign != 0, mode);
    }
    if (rounded > 0x7c00) rounded = 0x7c00;
    const bool away = mode != AscendC::RoundMode::CAST_TRUNC && mode != AscendC::RoundMode::CAST_ODD &&
                      !(mode == AscendC::RoundMode::CAST_FLOOR && !sign) &&
                      !(mode == AscendC::RoundMode::CAST_CEIL && sign);
    if (rounded == 0x7c00 && !away) rounded = 0x7bff;
    return static_cast<uint16_t>(sign | rounded);
}

inline float half_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31,
                   mantissa = bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000 | (mantissa << 13));
    if (exponent) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

}  // namespace emulator

// As on the device, half computes in scalar code through float.
struct half {
    uint16_t bits;
    half() = default;
    template <typename N, typename = std::enable_if_t<std::is_arithmetic_v<N>>>
    half(N value) : bits(emulator::float_to_half(static_cast<float>(value), AscendC::RoundMode::CAST_RINT)) {}
    operator float() const { return emulator::half_to_float(bits); }
};

// No arithmetic and no conversion from float: AscendC::ToFloat, ToBfloat16 and Cast are the ways that all versions
// have.
struct bfloat16_t {
    uint16_t bits;
    bfloat16_t() = default;
    template <typename N, typename = std::enable_if_t<std::is_integral_v<N>>>
    bfloat16_t(N value) : bits(emulator::float_to_bfloat16(static_cast<float>(value), AscendC::RoundMode::CAST_RINT)) {}
};

static_assert(sizeof(half) == 2 && sizeof(bfloat16_t) == 2);

namespace emulator {

template <typename T, typename... Allowed>
constexpr bool one_of = (std::is_same_v<T, Allowed> || ...);

template <typename T>
constexpr int dtype_code = one_of<T, float>        ? 1
                           : one_of<T, half>       ? 2
                           : one_of<T, bfloat16_t> ? 3
                                                   : 10 + int(sizeof(T));

}  // namespace emulator

namespace AscendC {

inline float ToFloat(const bfloat16_t& value) { return emulator::bfloat16_to_float(value.bits); }

inline bfloat16_t ToBfloat16(const float& value) {
    bfloat16_t result;
    result.bits = emulator::float_to_bfloat16(value, RoundMode::CAST_RINT);
    return result;
}

}  // namespace AscendC
