// Elementwise vector instructions. Names, template parameters and types are those of the A2/A3 headers.
#pragma once

#include <cmath>
#include <array>
#include <utility>

#include "lanes.h"

namespace emulator {

// Float is what the lanes of half compute in; integers compute in their own type.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, half>, float, T>;

template <typename D, typename... Sources, typename F, size_t... I>
void evaluate(const Lanes& lanes, const Operand& dst, const std::array<Operand, sizeof...(Sources)>& sources,
              bool contiguous, F f, std::index_sequence<I...>) {
    D results[REPEAT_BYTES];
    uint8_t* base = core().ub;
    if (contiguous) {
        const uint64_t total = lanes.contiguous();
        D* out = reinterpret_cast<D*>(base + dst.view.address);
        for (uint64_t start = 0; start < total; start += lanes.per_repeat) {
            const uint32_t length = static_cast<uint32_t>(std::min<uint64_t>(lanes.per_repeat, total - start));
            for (uint32_t i = 0; i < length; ++i) {
                results[i] = f(reinterpret_cast<const Sources*>(base + sources[I].view.address)[start + i]...);
            }
            std::memcpy(out + start, results, length * sizeof(D));
        }
        return;
    }
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!lanes.active(repeat, lane)) continue;
            results[lane] = f(
                *reinterpret_cast<const Sources*>(base + sources[I].view.address + sources[I].offset(repeat, lane))...);
        }
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!lanes.active(repeat, lane)) continue;
            *reinterpret_cast<D*>(base + dst.view.address + dst.offset(repeat, lane)) = results[lane];
        }
    }
}

// dst[i] = f(a[i], b[i], ...) over the lanes. Each repeat is read whole before it is written.
template <typename D, typename... Sources, typename F>
void apply(const char* api, const Lanes& lanes, const Operand& dst,
           const std::array<Operand, sizeof...(Sources)>& sources, F f, bool accumulates = false) {
    Core& c = core();
    c.begin(V);
    c.count_repeats(api, lanes.repeats);
    dst.view.check_alive(api);
    dst.view.check_aligned(api, "dst");
    bool contiguous = dst.contiguous(lanes) && lanes.contiguous();
    for (size_t i = 0; i < sources.size(); ++i) {
        sources[i].view.check_alive(api);
        sources[i].view.check_aligned(api, sources[i].name);
        check_overlap(dst, sources[i], lanes, accumulates && i == 1, api);
        touch_read(sources[i], lanes, api);
        contiguous = contiguous && sources[i].contiguous(lanes);
    }
    touch_write(dst, lanes, api);
    evaluate<D, Sources...>(lanes, dst, sources, contiguous, f, std::index_sequence_for<Sources...>());
}

template <typename T>
constexpr uint32_t per_repeat = REPEAT_BYTES / sizeof(T);

template <typename T, typename Params>
Operand unary_dst(const AscendC::LocalTensor<T>& t, const Params& p) {
    return {t.view, sizeof(T), p.dstBlkStride, p.dstRepStride, "dst"};
}
template <typename T>
Operand unary_src(const AscendC::LocalTensor<T>& t, const AscendC::UnaryRepeatParams& p) {
    return {t.view, sizeof(T), p.srcBlkStride, p.srcRepStride, "src"};
}
template <typename T>
Operand first_src(const AscendC::LocalTensor<T>& t, const AscendC::BinaryRepeatParams& p) {
    return {t.view, sizeof(T), p.src0BlkStride, p.src0RepStride, "src0"};
}
template <typename T>
Operand second_src(const AscendC::LocalTensor<T>& t, const AscendC::BinaryRepeatParams& p) {
    return {t.view, sizeof(T), p.src1BlkStride, p.src1RepStride, "src1"};
}

template <typename T, typename F>
void unary(const char* api, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Lanes& lanes,
           const AscendC::UnaryRepeatParams& params, F f) {
    apply<T, T>(api, lanes, unary_dst(dst, params), {unary_src(src, params)}, f);
}
template <typename T, typename F>
void binary(const char* api, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
            const AscendC::LocalTensor<T>& src1, const Lanes& lanes, const AscendC::BinaryRepeatParams& params, F f,
            bool accumulates = false) {
    apply<T, T, T>(api, lanes, unary_dst(dst, params), {first_src(src0, params), second_src(src1, params)}, f,
                   accumulates);
}

template <typename T>
T shift_left(T value, T by) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(value) << by);
}

}  // namespace emulator

namespace AscendC {

// An instruction says its arithmetic on x and y, and its types. It gets the API's two forms: with a mask and repeats,
// and with a count. Saturation of 16- and 32-bit integers is not emulated: they wrap.
#define ASCENDC_TYPES(NAME, ...)                                                                                       \
    static_assert(emulator::one_of<T, __VA_ARGS__>,                                                                    \
                  #NAME " does not take this type on A2 and A3: see its table of types")
#define ASCENDC_MASKED(NAME) emulator::masked<isSetMask>(emulator::per_repeat<T>, mask, repeatTime, #NAME)
#define ASCENDC_COUNTED(NAME) emulator::counted(emulator::per_repeat<T>, count, #NAME)

#define ASCENDC_UNARY(NAME, EXPRESSION, ...)                                                                           \
    template <typename T>                                                                                              \
    T NAME##Of(T raw) {                                                                                                \
        ASCENDC_TYPES(NAME, __VA_ARGS__);                                                                              \
        const auto x = static_cast<emulator::Compute<T>>(raw);                                                         \
        return static_cast<T>(EXPRESSION);                                                                             \
    }                                                                                                                  \
    template <typename T, bool isSetMask = true>                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, emulator::Mask mask,                               \
              const emulator::RepeatTime repeatTime, const UnaryRepeatParams& repeatParams) {                          \
        emulator::unary(#NAME, dst, src, ASCENDC_MASKED(NAME), repeatParams, NAME##Of<T>);                             \
    }                                                                                                                  \
    template <typename T>                                                                                              \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count) {                            \
        emulator::unary(#NAME, dst, src, ASCENDC_COUNTED(NAME), UnaryRepeatParams(), NAME##Of<T>);                     \
    }

#define ASCENDC_PAIR(NAME, EXPRESSION, ...)                                                                            \
    template <typename T>                                                                                              \
    T NAME##Of(T raw_x, T raw_y) {                                                                                     \
        ASCENDC_TYPES(NAME, __VA_ARGS__);                                                                              \
        const auto x = static_cast<emulator::Compute<T>>(raw_x), y = static_cast<emulator::Compute<T>>(raw_y);         \
        return static_cast<T>(EXPRESSION);                                                                             \
    }

#define ASCENDC_BINARY(NAME, ACCUMULATES, EXPRESSION, ...)                                                             \
    ASCENDC_PAIR(NAME, EXPRESSION, __VA_ARGS__)                                                                        \
    template <typename T, bool isSetMask = true>                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, emulator::Mask mask,  \
              const emulator::RepeatTime repeatTime, const BinaryRepeatParams& repeatParams) {                         \
        emulator::binary(#NAME, dst, src0, src1, ASCENDC_MASKED(NAME), repeatParams, NAME##Of<T>,                      \
                         ACCUMULATES && emulator::one_of<T, half, float, int32_t>);                                    \
    }                                                                                                                  \
    template <typename T>                                                                                              \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,                       \
              const int32_t& count) {                                                                                  \
        emulator::binary(#NAME, dst, src0, src1, ASCENDC_COUNTED(NAME), BinaryRepeatParams(), NAME##Of<T>);            \
    }

#define ASCENDC_SCALAR(NAME, EXPRESSION, ...)                                                                          \
    ASCENDC_PAIR(NAME, EXPRESSION, __VA_ARGS__)                                                                        \
    template <typename T, bool isSetMask = true>                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, emulator::Mask mask,         \
              const emulator::RepeatTime repeatTime, const UnaryRepeatParams& repeatParams) {                          \
        emulator::unary(#NAME, dst, src, ASCENDC_MASKED(NAME), repeatParams,                                           \
                        [scalar = scalarValue](T x) { return NAME##Of<T>(x, scalar); });                               \
    }                                                                                                                  \
    template <typename T>                                                                                              \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const int32_t& count) {      \
        emulator::unary(#NAME, dst, src, ASCENDC_COUNTED(NAME), UnaryRepeatParams(),                                   \
                        [scalar = scalarValue](T x) { return NAME##Of<T>(x, scalar); });                               \
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
ASCENDC_SCALAR(ShiftLeft, emulator::shift_left(raw_x, raw_y), int16_t, uint16_t, int32_t, uint32_t)
ASCENDC_SCALAR(ShiftRight, x >> y, int16_t, uint16_t, int32_t, uint32_t)

#undef ASCENDC_TYPES
#undef ASCENDC_MASKED
#undef ASCENDC_COUNTED
#undef ASCENDC_PAIR
#undef ASCENDC_UNARY
#undef ASCENDC_BINARY
#undef ASCENDC_SCALAR

}  // namespace AscendC

namespace emulator {

// dst += src * scalar. A float dst may take half sources: then a repeat is 64 elements.
template <typename T, typename U>
void axpy(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& src, U scalar, const Lanes& lanes,
          const AscendC::UnaryRepeatParams& params) {
    static_assert(
        (one_of<T, half, float> && std::is_same_v<T, U>) || (std::is_same_v<T, float> && std::is_same_v<U, half>),
        "Axpy takes half += half, float += float or float += half");
    const float factor = static_cast<float>(scalar);
    Operand target = unary_dst(dst, params), same = target;
    same.name = "dst";
    apply<T, U, T>("Axpy", lanes, target, {unary_src(src, params), same}, [factor](U x, T y) {
        return static_cast<T>(static_cast<float>(y) + static_cast<float>(x) * factor);
    });
}

template <typename T>
void duplicate(const AscendC::LocalTensor<T>& dst, T value, const Lanes& lanes, uint32_t block_stride,
               uint32_t repeat_stride) {
    static_assert(one_of<T, half, bfloat16_t, int16_t, uint16_t, int32_t, uint32_t, float>,
                  "Duplicate does not take this type");
    apply<T>("Duplicate", lanes, Operand{dst.view, sizeof(T), block_stride, repeat_stride, "dst"}, {},
             [value]() { return value; });
}

}  // namespace emulator

namespace AscendC {

template <typename T, typename U, bool isSetMask = true>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, emulator::Mask mask,
          const emulator::RepeatTime repeatTime, const UnaryRepeatParams& repeatParams) {
    using namespace emulator;
    axpy(dst, src, scalarValue, masked<isSetMask>(per_repeat<T>, mask, repeatTime, "Axpy"), repeatParams);
}
template <typename T, typename U>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, const int32_t& count) {
    using namespace emulator;
    const UnaryRepeatParams params(1, 1, 8, 8 * sizeof(U) / sizeof(T));
    axpy(dst, src, scalarValue, counted(per_repeat<T>, count, "Axpy"), params);
}

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, emulator::Mask mask, const emulator::RepeatTime repeatTime,
               const uint16_t dstBlockStride, const uint8_t dstRepeatStride) {
    using namespace emulator;
    duplicate(dst, scalarValue, masked<isSetMask>(per_repeat<T>, mask, repeatTime, "Duplicate"), dstBlockStride,
              dstRepeatStride);
}
template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count) {
    using namespace emulator;
    duplicate(dst, scalarValue, counted(per_repeat<T>, count, "Duplicate"), 1, 8);
}

// The first block is written by the scalar unit, the rest by vector adds, as the A2/A3 implementation does.
template <typename T>
void CreateVecIndex(LocalTensor<T> dst, const T& firstValue, uint32_t count) {
    static_assert(emulator::one_of<T, half, float, int16_t, int32_t>, "CreateVecIndex does not take this type");
    constexpr uint32_t block = 32 / sizeof(T), repeat = 256 / sizeof(T);
    dst.view.check_aligned("CreateVecIndex", "dst");
    for (uint32_t i = 0; i < std::min(count, block); ++i)
        dst.SetValue(i, static_cast<T>(firstValue + static_cast<T>(i)));
    const TEventID id = GetTPipePtr()->FetchEventID(HardEvent::S_V);
    SetFlag<HardEvent::S_V>(id);
    WaitFlag<HardEvent::S_V>(id);
    for (uint32_t done = block; done < count;) {
        const uint32_t step = done < repeat ? block : repeat;
        Adds(dst[done], dst[done - step], static_cast<T>(step), static_cast<int32_t>(std::min(step, count - done)));
        PipeBarrier<PIPE_V>();
        done += step;
    }
}

// dst[i] = first + i * step, also by the scalar unit and vector adds.
template <typename T>
void ArithProgression(const LocalTensor<T>& dst, const T firstValue, const T diffValue, const int32_t count) {
    static_assert(emulator::one_of<T, half, float, int16_t, int32_t>, "ArithProgression does not take this type");
    constexpr int32_t block = 32 / sizeof(T), repeat = 256 / sizeof(T);
    for (int32_t i = 0; i < std::min(count, block); ++i)
        dst.SetValue(i, static_cast<T>(firstValue + diffValue * static_cast<T>(i)));
    const TEventID id = GetTPipePtr()->FetchEventID(HardEvent::S_V);
    SetFlag<HardEvent::S_V>(id);
    WaitFlag<HardEvent::S_V>(id);
    for (int32_t done = block; done < count;) {
        const int32_t step = done < repeat ? block : repeat;
        Adds(dst[done], dst[done - step], static_cast<T>(diffValue * static_cast<T>(step)),
             std::min(step, count - done));
        PipeBarrier<PIPE_V>();
        done += step;
    }
}

}  // namespace AscendC
