// Elementwise vector instructions and casts. Names, template parameters and types are those of the A2/A3 headers.
#pragma once

#include <array>
#include <utility>

#include "lanes.h"

namespace emulator {

// Float is what the lanes of half compute in; integers compute in their own type.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, half>, float, T>;

template <typename T>
constexpr uint32_t per_repeat = REPEAT_BYTES / sizeof(T);

template <typename D, typename... Sources, typename F, size_t... I>
void evaluate(const Lanes& lanes, const Operand& dst, const std::array<Operand, sizeof...(Sources)>& sources,
              bool contiguous, F f, std::index_sequence<I...>) {
    D results[REPEAT_BYTES];
    if (contiguous) {
        const uint64_t total = lanes.contiguous();
        for (uint64_t start = 0; start < total; start += lanes.per_repeat) {
            const uint64_t length = std::min<uint64_t>(lanes.per_repeat, total - start);
            for (uint64_t i = 0; i < length; ++i) {
                results[i] = f(ub_pointer<const Sources>(sources[I].view.address)[start + i]...);
            }
            std::memcpy(ub_pointer<D>(dst.view.address) + start, results, length * sizeof(D));
        }
        return;
    }
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!lanes.active(repeat, lane)) continue;
            results[lane] = f(*ub_pointer<const Sources>(sources[I].address(repeat, lane))...);
        }
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (lanes.active(repeat, lane)) *ub_pointer<D>(dst.address(repeat, lane)) = results[lane];
        }
    }
}

// dst[i] = f(a[i], b[i], ...) over the lanes. Each repeat is read whole before it is written.
template <typename D, typename... Sources, typename F>
void apply(const Lanes& lanes, const Operand& dst, const std::array<Operand, sizeof...(Sources)>& sources, F f,
           bool accumulates = false) {
    core().count_repeats(lanes.repeats);
    dst.view.check("dst");
    bool contiguous = dst.contiguous(lanes) && lanes.contiguous();
    for (size_t i = 0; i < sources.size(); ++i) {
        sources[i].view.check(sources[i].name);
        check_overlap(dst, sources[i], lanes, accumulates && i == 1);
        touch(sources[i], lanes, &View::read);
        contiguous = contiguous && sources[i].contiguous(lanes);
    }
    touch(dst, lanes, &View::write);
    evaluate<D, Sources...>(lanes, dst, sources, contiguous, f, std::index_sequence_for<Sources...>());
}

template <typename T, typename Params>
Operand destination(const AscendC::LocalTensor<T>& t, const Params& p) {
    return {t.view, sizeof(T), p.dstBlkStride, p.dstRepStride, "dst"};
}
template <typename T>
Operand source(const AscendC::LocalTensor<T>& t, const AscendC::UnaryRepeatParams& p) {
    return {t.view, sizeof(T), p.srcBlkStride, p.srcRepStride, "src"};
}

// `how` is what `extent` takes.
template <typename T, typename F, typename... How>
void unary(const char* api, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, F f, How... how) {
    core().begin(V, api);
    const auto [lanes, params] = extent(per_repeat<T>, AscendC::UnaryRepeatParams(), how...);
    apply<T, T>(lanes, destination(dst, params), {source(src, params)}, f);
}
template <typename T, typename F, typename... How>
void binary(const char* api, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
            const AscendC::LocalTensor<T>& src1, bool accumulates, F f, How... how) {
    core().begin(V, api);
    const auto [lanes, params] = extent(per_repeat<T>, AscendC::BinaryRepeatParams(), how...);
    const Operand first{src0.view, sizeof(T), params.src0BlkStride, params.src0RepStride, "src0"};
    const Operand second{src1.view, sizeof(T), params.src1BlkStride, params.src1RepStride, "src1"};
    apply<T, T, T>(lanes, destination(dst, params), {first, second}, f,
                   accumulates && one_of<T, half, float, int32_t>);
}

}  // namespace emulator

namespace AscendC {

// An instruction says its arithmetic on x and y, and its types. It gets the API's two forms: with a mask and repeats,
// and with a count. Saturation of 16- and 32-bit integers is not emulated: they wrap.
#define ASCENDC_OPERATION(NAME, EXPRESSION, ...)                                                                       \
    template <typename T>                                                                                              \
    T NAME##Of(T raw_x, T raw_y) {                                                                                     \
        static_assert(emulator::one_of<T, __VA_ARGS__>, #NAME " does not take this type on A2 and A3");                \
        const auto x = static_cast<emulator::Compute<T>>(raw_x);                                                       \
        [[maybe_unused]] const auto y = static_cast<emulator::Compute<T>>(raw_y);                                      \
        return static_cast<T>(EXPRESSION);                                                                             \
    }
#define ASCENDC_UNARY(NAME, EXPRESSION, ...)                                                                           \
    ASCENDC_OPERATION(NAME, EXPRESSION, __VA_ARGS__)                                                                   \
    template <typename T, typename... How>                                                                             \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, How... how) {                                      \
        emulator::unary(#NAME, dst, src, [](T x) { return NAME##Of<T>(x, x); }, how...);                               \
    }
#define ASCENDC_SCALAR(NAME, EXPRESSION, ...)                                                                          \
    ASCENDC_OPERATION(NAME, EXPRESSION, __VA_ARGS__)                                                                   \
    template <typename T, typename... How>                                                                             \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, How... how) {                \
        emulator::unary(#NAME, dst, src, [y = scalarValue](T x) { return NAME##Of<T>(x, y); }, how...);                \
    }
#define ASCENDC_BINARY(NAME, ACCUMULATES, EXPRESSION, ...)                                                             \
    ASCENDC_OPERATION(NAME, EXPRESSION, __VA_ARGS__)                                                                   \
    template <typename T, typename... How>                                                                             \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, How... how) {         \
        emulator::binary(#NAME, dst, src0, src1, ACCUMULATES, NAME##Of<T>, how...);                                    \
    }

ASCENDC_UNARY(Exp, std::exp(x), half, float)
ASCENDC_UNARY(Ln, std::log(x), half, float)
ASCENDC_UNARY(Abs, std::fabs(x), half, float)
ASCENDC_UNARY(Reciprocal, 1.0f / x, half, float)
ASCENDC_UNARY(Sqrt, std::sqrt(x), half, float)
ASCENDC_UNARY(Rsqrt, 1.0f / std::sqrt(x), half, float)
ASCENDC_UNARY(Relu, x > 0 ? x : 0, half, float, int32_t)
ASCENDC_UNARY(Not, ~x, int16_t, uint16_t)
ASCENDC_BINARY(Add, true, x + y, half, float, int16_t, int32_t)
ASCENDC_BINARY(Sub, true, x - y, half, float, int16_t, int32_t)
ASCENDC_BINARY(Mul, true, (x * y), half, float, int16_t, int32_t)
ASCENDC_BINARY(Div, false, x / y, half, float)
ASCENDC_BINARY(Max, true, x > y ? x : y, half, float, int16_t, int32_t)
ASCENDC_BINARY(Min, true, x < y ? x : y, half, float, int16_t, int32_t)
ASCENDC_BINARY(And, false, (x & y), int16_t, uint16_t)
ASCENDC_BINARY(Or, false, x | y, int16_t, uint16_t)
ASCENDC_SCALAR(Adds, x + y, half, float, int16_t, int32_t)
ASCENDC_SCALAR(Muls, (x * y), half, float, int16_t, int32_t)
ASCENDC_SCALAR(Maxs, x > y ? x : y, half, float, int16_t, int32_t)
ASCENDC_SCALAR(Mins, x < y ? x : y, half, float, int16_t, int32_t)
ASCENDC_SCALAR(ShiftLeft, x << y, int16_t, uint16_t, int32_t, uint32_t)
ASCENDC_SCALAR(ShiftRight, x >> y, int16_t, uint16_t, int32_t, uint32_t)

#undef ASCENDC_OPERATION
#undef ASCENDC_UNARY
#undef ASCENDC_BINARY
#undef ASCENDC_SCALAR

// dst += src * scalar. A float dst may take half sources: then a repeat is 64 elements.
template <typename T, typename U, typename... How>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, How... how) {
    using namespace emulator;
    static_assert(
        (one_of<T, half, float> && std::is_same_v<T, U>) || (std::is_same_v<T, float> && std::is_same_v<U, half>),
        "Axpy takes half += half, float += float or float += half");
    core().begin(V, "Axpy");
    const UnaryRepeatParams adjacent(1, 1, 8, 8 * sizeof(U) / sizeof(T));
    const auto [lanes, params] = extent(per_repeat<T>, adjacent, how...);
    const Operand target = destination(dst, params);
    apply<T, U, T>(lanes, target, {source(src, params), target}, [factor = static_cast<float>(scalarValue)](U x, T y) {
        return static_cast<T>(static_cast<float>(y) + static_cast<float>(x) * factor);
    });
}

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count) {
    using namespace emulator;
    static_assert(one_of<T, half, bfloat16_t, int16_t, uint16_t, int32_t, uint32_t, float>,
                  "Duplicate does not take this type");
    core().begin(V, "Duplicate");
    apply<T>(counted(per_repeat<T>, count), destination(dst, UnaryRepeatParams()), {},
             [value = scalarValue]() { return value; });
}

}  // namespace AscendC

namespace emulator {

template <typename T>
float widen(T value) {
    if constexpr (std::is_same_v<T, bfloat16_t>) {
        return bfloat16_to_float(value.bits);
    } else {
        return static_cast<float>(value);
    }
}

// Which rounding modes a pair of types takes: NONE alone (the result is exact), any, or any but NONE and ODD.
enum Modes : int8_t { NO_PAIR, EXACT, ANY, ROUNDED };

template <typename D, typename U>
constexpr Modes cast_modes = std::is_same_v<D, float> && one_of<U, half, bfloat16_t> ? EXACT
                             : !std::is_same_v<U, float>                             ? NO_PAIR
                             : std::is_same_v<D, half>                               ? ANY
                             : std::is_same_v<D, bfloat16_t>                         ? ROUNDED
                                                                                     : NO_PAIR;

template <typename D, typename U>
D converted(U value, Round mode) {
    if constexpr (std::is_same_v<D, bfloat16_t>) {
        return bit_cast<D>(float_to_bfloat16(value, mode));
    } else if constexpr (std::is_same_v<D, half>) {
        return bit_cast<D>(float_to_half(value, mode));
    } else {
        return widen(value);
    }
}

}  // namespace emulator

namespace AscendC {

template <typename T, typename U, typename... How>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, How... how) {
    using namespace emulator;
    constexpr Modes modes = cast_modes<T, U>;
    static_assert(modes != NO_PAIR, "Cast has no such pair of types on A2 and A3");
    core().begin(V, "Cast");
    const bool none = roundMode == RoundMode::CAST_NONE, odd = roundMode == RoundMode::CAST_ODD;
    if (modes == EXACT ? !none : (modes != ANY && odd) || (modes == ROUNDED && none))
        fault("cast-mode", "Cast does not round this pair of types with mode %d", static_cast<int>(roundMode));
    constexpr uint32_t wide = std::min(per_repeat<T>, per_repeat<U>);
    const UnaryRepeatParams adjacent(1, 1, wide * sizeof(T) / BLOCK, wide * sizeof(U) / BLOCK);
    const auto [lanes, params] = extent(wide, adjacent, how...);
    apply<T, U>(lanes, destination(dst, params), {source(src, params)},
                [mode = roundMode](U value) { return converted<T, U>(value, mode); });
}

}  // namespace AscendC
