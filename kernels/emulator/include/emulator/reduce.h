// Reductions: within repeats, blocks and pairs, and of whole tensors.
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

// The active lanes [begin, end) of a repeat. Sums add pairs, then pairs of pairs, as the vector unit does.
template <typename T>
Folded<T> fold_lanes(const Operand& src, const Lanes& lanes, uint32_t repeat, uint32_t begin, uint32_t end, Fold fold) {
    Folded<T> result;
    T values[REPEAT_BYTES / 2];
    for (uint32_t lane = begin; lane < end; ++lane) {
        const bool active = lanes.active(repeat, lane);
        const T value = values[lane - begin] = active ? *ub_pointer<T>(src.address(repeat, lane)) : T(0);
        if (active && fold != Fold::SUM && (!result.any || better(value, result.value, fold))) {
            result.value = value;
            result.index = lane;
        }
        result.any = result.any || active;
    }
    if (fold != Fold::SUM) return result;
    for (uint32_t count = end - begin; count > 1; count /= 2) {
        for (uint32_t i = 0; i < count / 2; ++i) {
            values[i] = static_cast<T>(static_cast<float>(values[2 * i]) + static_cast<float>(values[2 * i + 1]));
        }
    }
    result.value = values[0];
    return result;
}

template <typename T>
Operand begin_reduce(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Lanes& lanes,
                     int32_t block_stride, int32_t repeat_stride, uint32_t alignment) {
    static_assert(one_of<T, half, float>, "reductions take half and float on A2 and A3: Cast bfloat16_t to float");
    if (block_stride < 0 || repeat_stride < 0) fault("stride-range", "%s: strides are not negative", core().api);
    dst.view.check("dst", alignment);
    src.view.check("src");
    core().count_repeats(lanes.repeats);
    const Operand operand{src.view, sizeof(T), static_cast<uint32_t>(block_stride),
                          static_cast<uint32_t>(repeat_stride), "src"};
    touch(operand, lanes, &View::read);
    return operand;
}

template <typename T, typename Value>
void put(const AscendC::LocalTensor<T>& dst, uint64_t offset, Value value) {
    std::memcpy(core().ub + dst.view.write("dst", offset, sizeof(Value)), &value, sizeof(Value));
}

template <typename T>
using IndexOf = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;

// One result for every `group` lanes; a group without active lanes leaves its result alone.
template <bool set, typename T>
void reduce_masked(const char* api, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                   ConstMask mask, int32_t repeats, uint32_t group, int32_t dst_stride, int32_t block_stride,
                   int32_t repeat_stride, Fold fold,
                   AscendC::ReduceOrder order = AscendC::ReduceOrder::ORDER_ONLY_VALUE) {
    using Order = AscendC::ReduceOrder;
    core().begin(V, api);
    const Lanes lanes = masked<set>(per_repeat<T>, mask, repeats);
    const bool value = order != Order::ORDER_ONLY_INDEX, index = order != Order::ORDER_ONLY_VALUE;
    const uint32_t result = value && index ? 2 * sizeof(T) : value ? sizeof(T) : 4;
    const uint32_t unit = lanes.per_repeat / group * result;  // bytes of a repeat's results
    const Operand operand = begin_reduce(dst, src, lanes, block_stride, repeat_stride, std::min(unit, BLOCK));
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t begin = 0; begin < lanes.per_repeat; begin += group) {
            const Folded<T> folded = fold_lanes<T>(operand, lanes, repeat, begin, begin + group, fold);
            if (!folded.any) continue;
            const uint64_t place = uint64_t{repeat} * dst_stride * unit + begin / group * result;
            if (!value) {
                put(dst, place, folded.index);
                continue;
            }
            put(dst, place + (order == Order::ORDER_INDEX_VALUE ? sizeof(T) : 0), folded.value);
            if (index) {
                put(dst, place + (order == Order::ORDER_INDEX_VALUE ? 0 : sizeof(T)),
                    static_cast<IndexOf<T>>(folded.index));
            }
        }
    }
}

inline uint64_t rounded_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// ReduceMax and ReduceMin of `count` elements; the result and, on request, its index among them. The counts of repeats
// and scalar accesses, and the documented size of sharedTmpBuffer, are those of the A2/A3 implementation.
template <typename T>
void reduce_best(const char* api, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                 const AscendC::LocalTensor<T>& work, int32_t count, bool with_index, Fold fold) {
    constexpr uint64_t block = BLOCK / sizeof(T), repeat_size = REPEAT_BYTES / sizeof(T);
    Core& c = core();
    c.begin(V, api);
    const Lanes lanes = counted(per_repeat<T>, count);
    if (!lanes.repeats) return;
    const uint64_t body = lanes.total / repeat_size;
    uint64_t needed = 0;
    for (uint64_t left = 2 * std::max<uint64_t>(body, 1);; left = 2 * rounded_up(left, repeat_size) / repeat_size) {
        needed += rounded_up(left, block) * sizeof(T);
        if (!with_index || left <= 2) break;
    }
    work.view.check("sharedTmpBuffer");
    if (work.view.bytes < needed) {
        fault("work-buffer", "%s needs %lu bytes of sharedTmpBuffer, it has %u", api, needed, work.view.bytes);
    }
    const Operand operand = begin_reduce(dst, src, lanes, 1, 8, 2 * sizeof(T));
    for (uint64_t left = body; left > 1;) {  // rounds on its own results
        left = rounded_up(left * 2, repeat_size) / repeat_size;
        c.counters.repeats[api] += left;
    }
    c.counters.scalar["inside reductions"] += 2;
    if (lanes.total % repeat_size && body) {
        c.counters.repeats[api] += 1;  // the tail is in the repeats already; its join with the body is not
        c.counters.scalar["inside reductions"] += 8;
    }
    c.forget_ub(work.view.write("sharedTmpBuffer", 0, needed), needed);
    Folded<T> best;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        Folded<T> found = fold_lanes<T>(operand, lanes, repeat, 0, repeat_size, fold);
        found.index += repeat * static_cast<uint32_t>(repeat_size);
        if (!best.any || better(found.value, best.value, fold)) best = found;
    }
    put(dst, 0, best.value);
    if (with_index) put(dst, sizeof(T), static_cast<IndexOf<T>>(best.index));
}

}  // namespace emulator

namespace AscendC {

#define ASCENDC_WHOLE(NAME, FOLD)                                                                                      \
    template <typename T, bool isSetMask = true>                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, emulator::ConstMask mask,                          \
              const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,                        \
              const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {                        \
        emulator::reduce_masked<isSetMask>(#NAME, dst, src, mask, repeatTime, emulator::per_repeat<T>, dstRepStride,   \
                                           srcBlkStride, srcRepStride, emulator::Fold::FOLD, order);                   \
    }
ASCENDC_WHOLE(WholeReduceMax, MAX)
ASCENDC_WHOLE(WholeReduceMin, MIN)
#undef ASCENDC_WHOLE

template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, emulator::ConstMask mask,
                    const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                    const int32_t srcRepStride) {
    emulator::reduce_masked<isSetMask>("WholeReduceSum", dst, src, mask, repeatTime, emulator::per_repeat<T>,
                                       dstRepStride, srcBlkStride, srcRepStride, emulator::Fold::SUM);
}

// From here on the mask follows the repeats, not the other way round.
#define ASCENDC_PARTS(NAME, GROUP, FOLD)                                                                               \
    template <typename T, bool isSetMask = true>                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,                          \
              emulator::ConstMask mask, const int32_t dstRepStride, const int32_t srcBlkStride,                        \
              const int32_t srcRepStride) {                                                                            \
        emulator::reduce_masked<isSetMask>(#NAME, dst, src, mask, repeatTime, GROUP, dstRepStride, srcBlkStride,       \
                                           srcRepStride, emulator::Fold::FOLD);                                        \
    }
ASCENDC_PARTS(BlockReduceMax, 32 / sizeof(T), MAX)
ASCENDC_PARTS(BlockReduceMin, 32 / sizeof(T), MIN)
ASCENDC_PARTS(BlockReduceSum, 32 / sizeof(T), SUM)
ASCENDC_PARTS(PairReduceSum, 2, SUM)
#undef ASCENDC_PARTS

template <typename T>
void ReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
               const int32_t count, bool calIndex = 0) {
    emulator::reduce_best("ReduceMax", dst, src, sharedTmpBuffer, count, calIndex, emulator::Fold::MAX);
}
template <typename T>
void ReduceMin(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
               const int32_t count, bool calIndex = 0) {
    emulator::reduce_best("ReduceMin", dst, src, sharedTmpBuffer, count, calIndex, emulator::Fold::MIN);
}

// Repeats are added up one after another.
template <typename T>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
               const int32_t count) {
    using namespace emulator;
    core().begin(V, "ReduceSum");
    const Lanes lanes = counted(per_repeat<T>, count);
    if (!lanes.repeats) return;
    sharedTmpBuffer.view.check_alive();
    const Operand operand = begin_reduce(dst, src, lanes, 1, 8, sizeof(T));
    core().counters.scalar["inside reductions"] += 2;
    float sum = fold_lanes<T>(operand, lanes, 0, 0, lanes.per_repeat, Fold::SUM).value;
    for (uint32_t repeat = 1; repeat < lanes.repeats; ++repeat) {
        const T part = fold_lanes<T>(operand, lanes, repeat, 0, lanes.per_repeat, Fold::SUM).value;
        sum = static_cast<T>(sum + static_cast<float>(part));
    }
    put(dst, 0, static_cast<T>(sum));
}

}  // namespace AscendC
