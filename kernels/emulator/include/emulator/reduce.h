// Reductions: within repeats, blocks and pairs, and of whole tensors.
#pragma once

#include "vector.h"

namespace emulator {

enum class Fold : uint8_t { MAX, MIN, SUM };

template <typename T>
constexpr void reduce_type() {
    static_assert(one_of<T, half, float>,
                  "reductions take half and float on A2 and A3: Cast bfloat16_t to float first");
}

// Pairs, then pairs of pairs: the order in which the vector unit adds. Values that take no part are 0.
template <typename T>
T tree_sum(T* values, uint32_t count) {
    for (; count > 1; count /= 2) {
        for (uint32_t i = 0; i < count / 2; ++i) {
            values[i] = static_cast<T>(static_cast<float>(values[2 * i]) + static_cast<float>(values[2 * i + 1]));
        }
    }
    return values[0];
}

template <typename T>
bool better(T value, T best, Fold fold) {
    const float x = static_cast<float>(value), y = static_cast<float>(best);
    return fold == Fold::MAX ? x > y : x < y;
}

struct Found {
    bool any = false;
    uint32_t index = 0;
};

// The largest (smallest) active value of lanes [begin, end) of a repeat; the first of equals.
template <typename T>
Found best_of(const Operand& src, const Lanes& lanes, uint32_t repeat, uint32_t begin, uint32_t end, Fold fold,
              T& best) {
    Found found;
    for (uint32_t lane = begin; lane < end; ++lane) {
        if (!lanes.active(repeat, lane)) continue;
        const T value = *ub_pointer<T>(src.view.address + static_cast<uint32_t>(src.offset(repeat, lane)));
        if (!found.any || better(value, best, fold)) {
            best = value;
            found = {true, lane};
        }
    }
    return found;
}

template <typename T>
T sum_of(const Operand& src, const Lanes& lanes, uint32_t repeat, uint32_t begin, uint32_t end, bool& any) {
    T values[REPEAT_BYTES / 2];
    any = false;
    for (uint32_t lane = begin; lane < end; ++lane) {
        const bool active = lanes.active(repeat, lane);
        any = any || active;
        values[lane - begin] = active
                                   ? *ub_pointer<T>(src.view.address + static_cast<uint32_t>(src.offset(repeat, lane)))
                                   : static_cast<T>(0);
    }
    return tree_sum(values, end - begin);
}

template <typename T>
Operand begin_reduce(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Lanes& lanes,
                     int32_t block_stride, int32_t repeat_stride, uint32_t alignment, const char* api) {
    reduce_type<T>();
    if (block_stride < 0 || repeat_stride < 0) fault("stride-range", "%s: strides are not negative", api);
    dst.view.check_alive(api);
    dst.view.check_aligned(api, "dst", alignment);
    src.view.check_alive(api);
    src.view.check_aligned(api, "src");
    core().begin(V);
    core().count_repeats(api, lanes.repeats);
    Operand operand{src.view, sizeof(T), static_cast<uint32_t>(block_stride), static_cast<uint32_t>(repeat_stride),
                    "src"};
    touch_read(operand, lanes, api);
    return operand;
}

template <typename T, typename Value>
void put(const AscendC::LocalTensor<T>& dst, uint64_t offset, Value value, const char* api) {
    const uint32_t address = dst.view.at(api, "dst", offset, sizeof(Value));
    core().write_ub(V, address, sizeof(Value), api);
    std::memcpy(core().ub + address, &value, sizeof(Value));
}

template <typename T>
using IndexOf = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;

template <typename T>
void whole_best(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Lanes& lanes,
                int32_t dst_stride, int32_t block_stride, int32_t repeat_stride, AscendC::ReduceOrder order, Fold fold,
                const char* api) {
    using Order = AscendC::ReduceOrder;
    const uint64_t unit = order == Order::ORDER_ONLY_VALUE   ? sizeof(T)
                          : order == Order::ORDER_ONLY_INDEX ? 4
                                                             : 2 * sizeof(T);
    const Operand operand =
        begin_reduce(dst, src, lanes, block_stride, repeat_stride, static_cast<uint32_t>(unit), api);
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        T best = 0;
        const Found found = best_of(operand, lanes, repeat, 0, lanes.per_repeat, fold, best);
        if (!found.any) continue;
        const uint64_t place = static_cast<uint64_t>(repeat) * dst_stride * unit;
        const auto index = static_cast<IndexOf<T>>(found.index);
        if (order == Order::ORDER_ONLY_INDEX) {
            put(dst, place, found.index, api);
            continue;
        }
        put(dst, place + (order == Order::ORDER_INDEX_VALUE ? sizeof(T) : 0), best, api);
        if (order != Order::ORDER_ONLY_VALUE)
            put(dst, place + (order == Order::ORDER_INDEX_VALUE ? 0 : sizeof(T)), index, api);
    }
}

template <typename T>
void whole_sum(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Lanes& lanes,
               int32_t dst_stride, int32_t block_stride, int32_t repeat_stride, const char* api) {
    const Operand operand = begin_reduce(dst, src, lanes, block_stride, repeat_stride, sizeof(T), api);
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        bool any;
        const T sum = sum_of<T>(operand, lanes, repeat, 0, lanes.per_repeat, any);
        if (any) put(dst, static_cast<uint64_t>(repeat) * dst_stride * sizeof(T), sum, api);
    }
}

// One result a block of 32 bytes. A block without active elements leaves its result alone.
template <typename T>
void block_fold(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Lanes& lanes,
                int32_t dst_stride, int32_t block_stride, int32_t repeat_stride, Fold fold, const char* api) {
    constexpr uint32_t per_block = BLOCK / sizeof(T), unit = 8 * sizeof(T);
    const Operand operand = begin_reduce(dst, src, lanes, block_stride, repeat_stride, unit, api);
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t block = 0; block < 8; ++block) {
            bool any;
            T result = 0;
            if (fold == Fold::SUM) {
                result = sum_of<T>(operand, lanes, repeat, block * per_block, (block + 1) * per_block, any);
            } else {
                any = best_of(operand, lanes, repeat, block * per_block, (block + 1) * per_block, fold, result).any;
            }
            if (any) put(dst, static_cast<uint64_t>(repeat) * dst_stride * unit + block * sizeof(T), result, api);
        }
    }
}

template <typename T>
void pair_sum(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Lanes& lanes,
              int32_t dst_stride, int32_t block_stride, int32_t repeat_stride, const char* api) {
    const Operand operand = begin_reduce(dst, src, lanes, block_stride, repeat_stride, BLOCK, api);
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t pair = 0; pair < lanes.per_repeat / 2; ++pair) {
            bool any;
            const T sum = sum_of<T>(operand, lanes, repeat, 2 * pair, 2 * pair + 2, any);
            if (any) put(dst, static_cast<uint64_t>(repeat) * dst_stride * 128 + pair * sizeof(T), sum, api);
        }
    }
}

inline uint64_t rounded_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// The documented size of sharedTmpBuffer in elements.
template <typename T>
uint64_t work_elements(uint64_t repeats, bool with_index, bool sum) {
    constexpr uint64_t block = BLOCK / sizeof(T), repeat = REPEAT_BYTES / sizeof(T);
    if (repeats == 0) repeats = 1;
    if (sum) return rounded_up(repeats, block);
    uint64_t needed = 0;
    for (uint64_t produced = 2 * repeats;; produced = 2 * rounded_up(produced, repeat) / repeat) {
        needed += rounded_up(produced, block);
        if (!with_index || produced <= 2) return needed;
    }
}

// Returns the bytes of sharedTmpBuffer that an instruction uses; `spoil` leaves them without a value.
template <typename T>
uint64_t check_work(const AscendC::LocalTensor<T>& work, uint64_t elements, const char* api) {
    const uint64_t needed = elements * sizeof(T);
    work.view.check_alive(api);
    work.view.check_aligned(api, "sharedTmpBuffer");
    if (work.view.bytes < needed) {
        fault("work-buffer", "%s needs %llu bytes of sharedTmpBuffer, it has %u", api,
              static_cast<unsigned long long>(needed), work.view.bytes);
    }
    return needed;
}
template <typename T>
void spoil(const AscendC::LocalTensor<T>& work, uint64_t bytes, const char* api) {
    core().write_ub(V, work.view.address, static_cast<uint32_t>(bytes), api);
    core().forget_ub(work.view.address, static_cast<uint32_t>(bytes));
}

// Repeats that the A2/A3 implementation spends after the first round, on its own results.
template <typename T>
uint64_t later_rounds(uint64_t repeats, bool sum) {
    constexpr uint64_t repeat = REPEAT_BYTES / sizeof(T);
    uint64_t spent = 0;
    for (uint64_t left = repeats; left > 1;) {
        left = rounded_up(left * (sum ? 1 : 2), repeat) / repeat;
        spent += left;
    }
    return spent;
}

// ReduceMax and ReduceMin of `lanes`; the result and, on request, its index among all elements read.
template <typename T>
void reduce_best(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                 const AscendC::LocalTensor<T>& work, const Lanes& lanes, int32_t repeat_stride, bool with_index,
                 Fold fold, const char* api) {
    reduce_type<T>();
    if (!lanes.repeats) return;
    const uint64_t body = lanes.counts ? lanes.total / lanes.per_repeat : lanes.repeats;
    const uint64_t needed = check_work(work, work_elements<T>(body, with_index, false), api);
    const uint32_t alignment = static_cast<uint32_t>(2 * sizeof(T));
    const Operand operand = begin_reduce(dst, src, lanes, 1, repeat_stride, alignment, api);
    Core& c = core();
    c.counters.repeats[api] += later_rounds<T>(body, false);
    c.counters.scalar["inside reductions"] += 2;
    if (lanes.counts && lanes.total % lanes.per_repeat && body) {
        c.counters.repeats[api] += 1;  // the tail is in the repeats already; its join with the body is not
        c.counters.scalar["inside reductions"] += 8;
    }
    spoil(work, needed, api);
    T best = 0;
    uint64_t index = 0;
    bool any = false;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        T value = 0;
        const Found found = best_of(operand, lanes, repeat, 0, lanes.per_repeat, fold, value);
        if (!found.any) continue;
        if (!any || better(value, best, fold)) {
            best = value;
            index = static_cast<uint64_t>(repeat) * repeat_stride * (BLOCK / sizeof(T)) + found.index;
        }
        any = true;
    }
    put(dst, 0, best, api);
    if (with_index) put(dst, sizeof(T), static_cast<IndexOf<T>>(index), api);
}

// Repeats are added up one after another (with a count) or as a tree (with repeats): `in_order`.
template <typename T>
void reduce_sum(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
                const AscendC::LocalTensor<T>& work, const Lanes& lanes, int32_t repeat_stride, bool in_order,
                const char* api) {
    reduce_type<T>();
    if (!lanes.repeats) return;
    work.view.check_alive(api);
    const Operand operand = begin_reduce(dst, src, lanes, 1, repeat_stride, sizeof(T), api);
    Core& c = core();
    if (!in_order) {
        const uint64_t needed = check_work(work, work_elements<T>(lanes.repeats, false, true), api);
        c.counters.repeats[api] += later_rounds<T>(lanes.repeats, true);
        spoil(work, needed, api);
    }
    c.counters.scalar["inside reductions"] += 2;
    std::vector<T> sums;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        bool any;
        sums.push_back(sum_of<T>(operand, lanes, repeat, 0, lanes.per_repeat, any));
    }
    if (in_order) {
        for (size_t i = 1; i < sums.size(); ++i)
            sums[0] = static_cast<T>(static_cast<float>(sums[0]) + static_cast<float>(sums[i]));
    } else {
        size_t room = 1;
        while (room < sums.size()) room *= 2;
        sums.resize(room, static_cast<T>(0));
        tree_sum(sums.data(), static_cast<uint32_t>(room));
    }
    put(dst, 0, sums[0], api);
}

// The reductions of whole tensors take any number of repeats.
template <typename T>
Lanes long_masked(ConstMask mask, int32_t repeats, const char* api) {
    if (repeats < 0) fault("repeat-range", "%s repeats %d times", api, repeats);
    Lanes lanes = masked<true>(per_repeat<T>, mask, 0, api);
    lanes.repeats = static_cast<uint32_t>(repeats);
    return lanes;
}

}  // namespace emulator

namespace AscendC {

#define ASCENDC_WHOLE(NAME, FOLD)                                                                                      \
    template <typename T, bool isSetMask = true>                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, emulator::ConstMask mask,                          \
              const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,                        \
              const int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {                        \
        using namespace emulator;                                                                                      \
        whole_best(dst, src, masked<isSetMask>(per_repeat<T>, mask, repeatTime, #NAME), dstRepStride, srcBlkStride,    \
                   srcRepStride, order, FOLD, #NAME);                                                                  \
    }
ASCENDC_WHOLE(WholeReduceMax, Fold::MAX)
ASCENDC_WHOLE(WholeReduceMin, Fold::MIN)
#undef ASCENDC_WHOLE

template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, emulator::ConstMask mask,
                    const int32_t repeatTime, const int32_t dstRepStride, const int32_t srcBlkStride,
                    const int32_t srcRepStride) {
    using namespace emulator;
    whole_sum(dst, src, masked<isSetMask>(per_repeat<T>, mask, repeatTime, "WholeReduceSum"), dstRepStride,
              srcBlkStride, srcRepStride, "WholeReduceSum");
}

// From here on the mask follows the repeats, not the other way round. dstBlkStride is there for its place alone.
template <typename T, bool isSetMask = true>
void RepeatReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask,
                     const int32_t /*dstBlkStride*/, const int32_t srcBlkStride, const int32_t dstRepStride,
                     const int32_t srcRepStride) {
    using namespace emulator;
    whole_sum(dst, src, masked<isSetMask>(per_repeat<T>, Mask(mask), repeatTime, "RepeatReduceSum"), dstRepStride,
              srcBlkStride, srcRepStride, "RepeatReduceSum");
}

#define ASCENDC_PARTS(NAME, REDUCE, ...)                                                                               \
    template <typename T, bool isSetMask = true>                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,                          \
              emulator::ConstMask mask, const int32_t dstRepStride, const int32_t srcBlkStride,                        \
              const int32_t srcRepStride) {                                                                            \
        using namespace emulator;                                                                                      \
        REDUCE(dst, src, masked<isSetMask>(per_repeat<T>, mask, repeatTime, #NAME), dstRepStride, srcBlkStride,        \
               srcRepStride, __VA_ARGS__ #NAME);                                                                       \
    }
ASCENDC_PARTS(BlockReduceMax, block_fold, Fold::MAX, )
ASCENDC_PARTS(BlockReduceMin, block_fold, Fold::MIN, )
ASCENDC_PARTS(BlockReduceSum, block_fold, Fold::SUM, )
ASCENDC_PARTS(PairReduceSum, pair_sum, )
#undef ASCENDC_PARTS

#define ASCENDC_REDUCE(NAME, FOLD)                                                                                     \
    template <typename T>                                                                                              \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,             \
              emulator::ConstMask mask, const int32_t repeatTime, const int32_t srcRepStride, bool calIndex = 0) {     \
        using namespace emulator;                                                                                      \
        reduce_best(dst, src, sharedTmpBuffer, long_masked<T>(mask, repeatTime, #NAME), srcRepStride, calIndex, FOLD,  \
                    #NAME);                                                                                            \
    }                                                                                                                  \
    template <typename T>                                                                                              \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,             \
              const int32_t count, bool calIndex = 0) {                                                                \
        using namespace emulator;                                                                                      \
        reduce_best(dst, src, sharedTmpBuffer, counted(per_repeat<T>, count, #NAME), 8, calIndex, FOLD, #NAME);        \
    }
ASCENDC_REDUCE(ReduceMax, Fold::MAX)
ASCENDC_REDUCE(ReduceMin, Fold::MIN)
#undef ASCENDC_REDUCE

template <typename T>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
               emulator::ConstMask mask, const int32_t repeatTime, const int32_t srcRepStride) {
    using namespace emulator;
    reduce_sum(dst, src, sharedTmpBuffer, long_masked<T>(mask, repeatTime, "ReduceSum"), srcRepStride, false,
               "ReduceSum");
}
template <typename T, bool isSetMask = true>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& sharedTmpBuffer,
               const int32_t count) {
    static_assert(isSetMask, "ReduceSum with a mask set outside is not emulated");
    using namespace emulator;
    reduce_sum(dst, src, sharedTmpBuffer, counted(per_repeat<T>, count, "ReduceSum"), 8, true, "ReduceSum");
}

}  // namespace AscendC
