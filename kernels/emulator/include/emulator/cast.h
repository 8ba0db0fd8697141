// Cast between types, with the pairs and rounding modes of A2 and A3.
#pragma once

#include <limits>

#include "vector.h"

namespace emulator {

template <typename T>
float widen(T value) {
    if constexpr (std::is_same_v<T, bfloat16_t>) {
        return bfloat16_to_float(value.bits);
    } else {
        return static_cast<float>(value);
    }
}

inline double round_whole(double x, AscendC::RoundMode mode) {
    using Mode = AscendC::RoundMode;
    switch (mode) {
        case Mode::CAST_FLOOR:
            return std::floor(x);
        case Mode::CAST_CEIL:
            return std::ceil(x);
        case Mode::CAST_ROUND:
            return std::round(x);
        case Mode::CAST_TRUNC:
            return std::trunc(x);
        default:
            return std::nearbyint(x);
    }
}

// To an integer: out of range saturates, NaN gives 0.
template <typename T>
T saturated(double x) {
    if (std::isnan(x)) return 0;
    if (x <= static_cast<double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
    if (x >= static_cast<double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
    return static_cast<T>(x);
}

// int32 to float, rounded by mode: through double, which holds both exactly.
inline float to_float(double x, AscendC::RoundMode mode) {
    float nearest = static_cast<float>(x);
    using Mode = AscendC::RoundMode;
    const bool down = mode == Mode::CAST_FLOOR || (mode == Mode::CAST_TRUNC && x > 0);
    const bool up = mode == Mode::CAST_CEIL || (mode == Mode::CAST_TRUNC && x < 0);
    if (down && nearest > x) nearest = std::nextafterf(nearest, -INFINITY);
    if (up && nearest < x) nearest = std::nextafterf(nearest, INFINITY);
    return nearest;
}

enum Modes : uint8_t { ONLY_NONE, TO_WHOLE, TO_HALF, TO_BF16, WITH_NONE };

// The pairs that exist; ONLY_NONE is exact.
template <typename D, typename U>
constexpr int cast_modes() {
    if constexpr (std::is_same_v<U, half>) {
        if (one_of<D, float>) return ONLY_NONE;
        if (one_of<D, int32_t, int16_t>) return TO_WHOLE;
        if (one_of<D, int8_t, uint8_t>) return WITH_NONE;
    } else if constexpr (std::is_same_v<U, float>) {
        if (one_of<D, half>) return TO_HALF;
        if (one_of<D, bfloat16_t>) return TO_BF16;
        if (one_of<D, int32_t, int16_t, int64_t>) return TO_WHOLE;
    } else if constexpr (std::is_same_v<U, bfloat16_t>) {
        if (one_of<D, float>) return ONLY_NONE;
        if (one_of<D, int32_t>) return TO_WHOLE;
    } else if constexpr (std::is_same_v<U, int32_t>) {
        if (one_of<D, float>) return WITH_NONE;
        if (one_of<D, int16_t, int64_t>) return ONLY_NONE;
    } else if constexpr (std::is_same_v<U, int16_t>) {
        if (one_of<D, float>) return ONLY_NONE;
        if (one_of<D, half>) return WITH_NONE;
    } else if constexpr (one_of<U, int8_t, uint8_t>) {
        if (one_of<D, half>) return ONLY_NONE;
    } else if constexpr (std::is_same_v<U, int64_t>) {
        if (one_of<D, int32_t>) return ONLY_NONE;
        if (one_of<D, float>) return TO_WHOLE;
    }
    return -1;
}

template <typename D, typename U>
D converted(U value, AscendC::RoundMode mode) {
    if constexpr (std::is_same_v<D, bfloat16_t>) {
        D result;
        result.bits = float_to_bfloat16(value, mode);
        return result;
    } else if constexpr (std::is_same_v<D, half>) {
        D result;
        result.bits = float_to_half(widen(value), mode);
        return result;
    } else if constexpr (std::is_same_v<D, float>) {
        if constexpr (one_of<U, int32_t, int64_t>)
            return to_float(static_cast<double>(value), mode);
        else
            return widen(value);
    } else if constexpr (std::is_integral_v<U>) {
        return saturated<D>(static_cast<double>(value));
    } else {
        return saturated<D>(round_whole(widen(value), mode));
    }
}

template <typename D, typename U>
void cast(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<U>& src, AscendC::RoundMode mode,
          const Lanes& lanes, const AscendC::UnaryRepeatParams& params) {
    static_assert(!(std::is_same_v<D, float> && std::is_same_v<U, float>), "do not Cast float to float");
    constexpr int modes = cast_modes<D, U>();
    static_assert(modes >= 0, "Cast has no such pair of types on A2 and A3");
    using Mode = AscendC::RoundMode;
    const bool exact = mode == Mode::CAST_NONE, odd = mode == Mode::CAST_ODD;
    const bool allowed = modes == ONLY_NONE   ? exact
                         : modes == TO_HALF   ? true
                         : modes == WITH_NONE ? !odd
                                              : !exact && !odd;
    if (!allowed) fault("cast-mode", "Cast does not round this pair of types with mode %d", static_cast<int>(mode));
    apply<D, U>("Cast", lanes, unary_dst(dst, params), {unary_src(src, params)},
                [mode](U value) { return converted<D, U>(value, mode); });
}

template <typename D, typename U>
constexpr uint32_t cast_lanes = REPEAT_BYTES / (sizeof(D) > sizeof(U) ? sizeof(D) : sizeof(U));

}  // namespace emulator

namespace AscendC {

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const emulator::ConstMask mask,
          const emulator::RepeatTime repeatTime, const UnaryRepeatParams& repeatParams) {
    using namespace emulator;
    cast(dst, src, roundMode, masked<isSetMask>(cast_lanes<T, U>, mask, repeatTime, "Cast"), repeatParams);
}
template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const uint32_t count) {
    using namespace emulator;
    constexpr uint32_t lanes = cast_lanes<T, U>;
    const UnaryRepeatParams params(1, 1, lanes * sizeof(T) / BLOCK, lanes * sizeof(U) / BLOCK);
    cast(dst, src, roundMode, counted(lanes, count, "Cast"), params);
}

// In the scalar unit: float to half or int32.
template <typename T, typename U, RoundMode roundMode>
U ScalarCast(T valueIn) {
    static_assert(std::is_same_v<T, float> && emulator::one_of<U, half, int32_t>,
                  "ScalarCast takes float to half or int32_t");
    return emulator::converted<U, T>(valueIn, roundMode);
}

}  // namespace AscendC
