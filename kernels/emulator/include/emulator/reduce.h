// Reductions of repeats.
#pragma once

#include "vector.h"

namespace emulator {

enum class Fold : uint8_t { MAX, MIN, SUM };

template <typename T>
struct Folded {
    bool any = false;  // some lane took part
    T value = T(0);
    uint32_t index = 0;  // the lane of the largest or smallest value; the first of equals
};

template <typename T>
bool better(T value, T best, Fold fold) {
    const float x = static_cast<float>(value), y = static_cast<float>(best);
    return fold == Fold::MAX ? x > y : x < y;
}

// The active lanes of a repeat. Sums add pairs, then pairs of pairs, as the vector unit does.
template <typename T>
Folded<T> fold_lanes(const Operand& src, const Lanes& lanes, uint32_t repeat, Fold fold) {
    Folded<T> result;
    T values[REPEAT_BYTES / 2];
    for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
        const bool active = lanes.active(repeat, lane);
        const T value = values[lane] = active ? *ub_pointer<T>(src.address(repeat, lane)) : T(0);
        if (active && fold != Fold::SUM && (!result.any || better(value, result.value, fold))) {
            result.value = value;
            result.index = lane;
        }
        result.any = result.any || active;
    }
    if (fold != Fold::SUM) return result;
    for (uint32_t count = lanes.per_repeat; count > 1; count /= 2) {
        for (uint32_t i = 0; i < count / 2; ++i) {
            values[i] = static_cast<T>(static_cast<float>(values[2 * i]) + static_cast<float>(values[2 * i + 1]));
        }
    }
    result.value = values[0];
    return result;
}

template <typename T, typename Value>
void put(const AscendC::LocalTensor<T>& dst, uint64_t offset, Value value) {
    std::memcpy(core().ub + dst.view.write("dst", offset, sizeof(Value)), &value, sizeof(Value));
}

template <typename T>
using IndexOf = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;

// One result a repeat; a repeat without active lanes leaves its result alone.
template <typename T>
void reduce_masked(const char* api, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                   ConstMask mask, int32_t repeats, int32_t dst_stride, int32_t block_stride, int32_t repeat_stride,
                   Fold fold, AscendC::ReduceOrder order = AscendC::ReduceOrder::ORDER_ONLY_VALUE) {
    using Order = AscendC::ReduceOrder;
    static_assert(one_of<T, half, float>, "reductions take half and float on A2 and A3: Cast bfloat16_t to float");
    core().begin(V, api);
    const Lanes lanes = masked(per_repeat<T>, mask, repeats);
    const bool value = order != Order::ORDER_ONLY_INDEX, index = order != Order::ORDER_ONLY_VALUE;
    const uint32_t result = value && index ? 2 * sizeof(T) : value ? sizeof(T) : 4;
    if (block_stride < 0 || repeat_stride < 0) fault("stride-range", "%s: strides are not negative", api);
    dst.view.check("dst", result);
    src.view.check("src");
    core().count_repeats(lanes.repeats);
    const Operand operand{src.view, sizeof(T), static_cast<uint32_t>(block_stride),
                          static_cast<uint32_t>(repeat_stride), "src"};
    touch(operand, lanes, &View::read);
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        const Folded<T> folded = fold_lanes<T>(operand, lanes, repeat, fold);
        if (!folded.any) continue;
        const uint64_t place = uint64_t{repeat} * dst_stride * result;
        const bool swapped = order == Order::ORDER_INDEX_VALUE;
        if (value) put(dst, place + (swapped ? sizeof(T) : 0), folded.value);
        if (value && index) put(dst, place + (swapped ? 0 : sizeof(T)), static_cast<IndexOf<T>>(folded.index));
        if (!value) put(dst, place, folded.index);
    }
}

}  // namespace emulator

namespace AscendC {

#define ASCENDC_WHOLE(NAME, FOLD)                                                                                      \
    template <typename T>                                                                                              \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, emulator::ConstMask mask,                          \
              const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,                        \
              const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {                        \
        emulator::reduce_masked(#NAME, dst, src, mask, repeatTime, dstRepStride, srcBlkStride,                         \
                                           srcRepStride, emulator::Fold::FOLD, order);                                 \
    }
ASCENDC_WHOLE(WholeReduceMax, MAX)
ASCENDC_WHOLE(WholeReduceMin, MIN)
#undef ASCENDC_WHOLE

template <typename T>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, emulator::ConstMask mask,
                    const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                    const int32_t srcRepStride) {
    emulator::reduce_masked("WholeReduceSum", dst, src, mask, repeatTime, dstRepStride, srcBlkStride,
                                       srcRepStride, emulator::Fold::SUM);
}

}  // namespace AscendC
