// How one vector instruction walks over its operands: repeats, mask, strides; and its checks, in bulk.
//
// A repeat covers 256 bytes of the widest operand. Inside it an operand advances by blocks of 32 bytes
// (`block_stride`), between repeats by `repeat_stride` blocks. A mask says which elements of a repeat take part; in
// counter mode, which is also how the calls with a count work, it says how many elements in all.
#pragma once

#include <algorithm>

#include "sync.h"

namespace AscendC {

struct UnaryRepeatParams {
    UnaryRepeatParams() {}
    UnaryRepeatParams(const uint16_t dstBlkStrideIn, const uint16_t srcBlkStrideIn, const uint8_t dstRepStrideIn,
                      const uint8_t srcRepStrideIn)
        : dstBlkStride(dstBlkStrideIn),
          srcBlkStride(srcBlkStrideIn),
          dstRepStride(dstRepStrideIn),
          srcRepStride(srcRepStrideIn) {}
    uint16_t dstBlkStride = 1;
    uint16_t srcBlkStride = 1;
    uint8_t dstRepStride = 8;
    uint8_t srcRepStride = 8;
};

struct BinaryRepeatParams {
    BinaryRepeatParams() {}
    BinaryRepeatParams(const uint8_t dstBlkStrideIn, const uint8_t src0BlkStrideIn, const uint8_t src1BlkStrideIn,
                       const uint8_t dstRepStrideIn, const uint8_t src0RepStrideIn, const uint8_t src1RepStrideIn)
        : dstBlkStride(dstBlkStrideIn),
          src0BlkStride(src0BlkStrideIn),
          src1BlkStride(src1BlkStrideIn),
          dstRepStride(dstRepStrideIn),
          src0RepStride(src0RepStrideIn),
          src1RepStride(src1RepStrideIn) {}
    uint8_t dstBlkStride = 1;
    uint8_t src0BlkStride = 1;
    uint8_t src1BlkStride = 1;
    uint8_t dstRepStride = 8;
    uint8_t src0RepStride = 8;
    uint8_t src1RepStride = 8;
};

// Counter mode: the masks of the calls with repeats are then numbers of elements, and repeatTime is ignored.
inline void SetMaskCount() { emulator::core().mask_counts = true; }
inline void SetMaskNorm() { emulator::core().mask_counts = false; }

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(const uint64_t maskHigh, const uint64_t maskLow) {
    if ((mode == MaskMode::COUNTER) != emulator::core().mask_counts) {
        emulator::fault("mask-mode", "SetVectorMask in one mask mode while the core is in the other");
    }
    emulator::core().mask_high = maskHigh;
    emulator::core().mask_low = maskLow;
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(int32_t len) {
    if constexpr (mode == MaskMode::COUNTER) {
        SetVectorMask<T, mode>(0, static_cast<uint64_t>(len));
    } else {
        if (len < 1 || len > static_cast<int32_t>(emulator::REPEAT_BYTES / sizeof(T))) {
            emulator::fault("mask-range", "SetVectorMask(%d): a repeat has %zu elements", len, 256 / sizeof(T));
        }
        const uint64_t low = len >= 64 ? ~0ull : (1ull << len) - 1;
        SetVectorMask<T, mode>(len > 64 ? len == 128 ? ~0ull : (1ull << (len - 64)) - 1 : 0, low);
    }
}

inline void ResetMask() { emulator::core().mask_low = emulator::core().mask_high = ~0ull; }

}  // namespace AscendC

namespace emulator {

// The API's repeatTime is an uint8_t, which would turn 256 into 0 unseen. This takes what converts to it, and
// remembers.
struct RepeatTime {
    int64_t value;
    template <typename N, typename = std::enable_if_t<std::is_integral_v<N>>>
    RepeatTime(N count) : value(static_cast<int64_t>(count)) {}
};

inline void check_repeats(int64_t repeats, const char* api) {
    if (repeats < 0 || repeats > 255) {
        fault("repeat-range", "%s repeats %lld times: at most 255", api, static_cast<long long>(repeats));
    }
}
inline uint32_t repeats_of(RepeatTime repeats, const char* api) {
    check_repeats(repeats.value, api);
    return static_cast<uint32_t>(repeats.value);
}

// A mask is a number of elements or an array of two words of bits; `Word` is const where the API takes such an array.
template <typename Word>
struct MaskOf {
    const uint64_t* bits = nullptr;
    uint64_t count = 0;
    template <typename N, typename = std::enable_if_t<std::is_integral_v<N>>>
    MaskOf(N number) : count(static_cast<uint64_t>(number)) {}
    MaskOf(Word* words) : bits(words) {}
};
using Mask = MaskOf<uint64_t>;
using ConstMask = MaskOf<const uint64_t>;

struct Lanes {
    uint32_t repeats = 0, per_repeat = 0;
    uint64_t low = ~0ull, high = ~0ull;  // the mask, where `total` does not say it
    uint64_t total = 0;
    bool counts = false;

    bool active(uint32_t repeat, uint32_t lane) const {
        if (counts) return static_cast<uint64_t>(repeat) * per_repeat + lane < total;
        return (lane < 64 ? low >> lane : high >> (lane - 64)) & 1;
    }
    bool all_of_repeat() const {
        return per_repeat >= 64 ? low == ~0ull && (per_repeat == 64 || high == ~0ull)
                                : (low & ((1ull << per_repeat) - 1)) == (1ull << per_repeat) - 1;
    }
    // Elements that are contiguous when strides are: 0 where the mask has holes between repeats.
    uint64_t contiguous() const {
        if (counts) return total;
        if (all_of_repeat()) return static_cast<uint64_t>(repeats) * per_repeat;
        return 0;
    }
};

inline Lanes counted(uint32_t per_repeat, int64_t count, const char* api) {
    if (count < 0) fault("count-range", "%s of %lld elements", api, static_cast<long long>(count));
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.counts = true;
    lanes.total = static_cast<uint64_t>(count);
    lanes.repeats = static_cast<uint32_t>((lanes.total + per_repeat - 1) / per_repeat);
    return lanes;
}

// `set` is the template parameter isSetMask: false takes the mask registers as they are.
template <bool set>
Lanes masked(uint32_t per_repeat, uint64_t high, uint64_t low, RepeatTime repeats, const char* api) {
    const uint32_t times = repeats_of(repeats, api);
    Core& c = core();
    if (set) {
        c.mask_high = high;
        c.mask_low = low;
    }
    if (c.mask_counts) return counted(per_repeat, static_cast<int64_t>(c.mask_low), api);
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.repeats = times;
    lanes.low = c.mask_low;
    lanes.high = c.mask_high;
    if (set && per_repeat <= 64 && high)
        fault("mask-range", "%s: mask[1] is not 0, but a repeat has %u elements", api, per_repeat);
    return lanes;
}

template <bool set, typename Word>
Lanes masked(uint32_t per_repeat, MaskOf<Word> mask, RepeatTime repeats, const char* api) {
    if (mask.bits) return masked<set>(per_repeat, mask.bits[1], mask.bits[0], repeats, api);
    const uint64_t count = mask.count;
    if (!set || core().mask_counts) return masked<set>(per_repeat, 0, count, repeats, api);
    if (count > per_repeat || count == 0) {
        fault("mask-range", "%s: mask %llu, but a repeat has %u elements", api, static_cast<unsigned long long>(count),
              per_repeat);
    }
    const uint64_t low = count >= 64 ? ~0ull : (1ull << count) - 1;
    const uint64_t high = count <= 64 ? 0 : count == 128 ? ~0ull : (1ull << (count - 64)) - 1;
    return masked<set>(per_repeat, high, low, repeats, api);
}

// One operand of an instruction.
struct Operand {
    View view;
    uint32_t size;  // bytes an element
    uint32_t block_stride = 1, repeat_stride = 8;
    const char* name = "src";

    uint64_t offset(uint32_t repeat, uint32_t lane) const {
        const uint32_t in_repeat = lane * size;
        return (static_cast<uint64_t>(repeat) * repeat_stride +
                static_cast<uint64_t>(in_repeat / BLOCK) * block_stride) *
                   BLOCK +
               in_repeat % BLOCK;
    }
    bool contiguous(const Lanes& lanes) const {
        // Repeats of the narrower operand of a cast are adjacent when their stride is what they fill.
        return block_stride == 1 && (lanes.repeats <= 1 || repeat_stride * BLOCK == lanes.per_repeat * size);
    }
};

// Calls visit(offset, bytes) for every contiguous piece of an operand that the lanes touch.
template <typename F>
void pieces(const Operand& operand, const Lanes& lanes, F visit) {
    if (operand.contiguous(lanes) && lanes.contiguous()) return visit(0, lanes.contiguous() * operand.size);
    const uint32_t per_block = BLOCK / operand.size;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t start = 0; start < lanes.per_repeat; start += per_block) {
            uint32_t first = start, last = std::min(start + per_block, lanes.per_repeat);
            while (first < last && !lanes.active(repeat, first)) ++first;
            while (last > first && !lanes.active(repeat, last - 1)) --last;
            if (first < last) visit(operand.offset(repeat, first), static_cast<uint64_t>(last - first) * operand.size);
        }
    }
}

inline void touch_read(const Operand& operand, const Lanes& lanes, const char* api) {
    pieces(operand, lanes, [&](uint64_t offset, uint64_t bytes) {
        core().read_ub(V, operand.view.at(api, operand.name, offset, bytes), static_cast<uint32_t>(bytes), api);
    });
}

inline void touch_write(const Operand& operand, const Lanes& lanes, const char* api) {
    pieces(operand, lanes, [&](uint64_t offset, uint64_t bytes) {
        core().write_ub(V, operand.view.at(api, operand.name, offset, bytes), static_cast<uint32_t>(bytes), api);
    });
}

// The documented rule on overlap: within a repeat operands coincide or are apart, and no repeat writes what a later one
// reads. Add, Sub, Mul, Max and Min may accumulate (`accumulates`): dst is src1 and one of their repeat strides is 0.
inline void check_overlap(const Operand& dst, const Operand& src, const Lanes& lanes, bool accumulates,
                          const char* api) {
    if (!lanes.repeats) return;
    const int64_t d = dst.view.address, s = src.view.address;
    const int64_t width_d = static_cast<int64_t>(lanes.per_repeat) * dst.size,
                  width_s = static_cast<int64_t>(lanes.per_repeat) * src.size;
    const int64_t step_d = static_cast<int64_t>(dst.repeat_stride) * BLOCK,
                  step_s = static_cast<int64_t>(src.repeat_stride) * BLOCK;
    const int64_t repeats = lanes.repeats;
    if (d == s && dst.size == src.size && (step_d == step_s || repeats == 1) && dst.block_stride == src.block_stride &&
        (step_d || repeats == 1))
        return;
    if (accumulates && d == s && (step_d == 0 || step_s == 0)) return;
    if (dst.block_stride != 1 || src.block_stride != 1) return;  // interleaved blocks: left to the reader
    const int64_t tail =
        lanes.counts ? static_cast<int64_t>(lanes.total - (lanes.total ? (lanes.repeats - 1ull) * lanes.per_repeat : 0))
                     : lanes.per_repeat;
    if (d + step_d * (repeats - 1) + tail * dst.size <= s || s + step_s * (repeats - 1) + tail * src.size <= d) return;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        const int64_t begin = d + repeat * step_d, end = begin + (repeat == repeats - 1 ? tail * dst.size : width_d);
        const int64_t own = s + repeat * step_s, own_end = own + (repeat == repeats - 1 ? tail * src.size : width_s);
        const bool partial = begin < own_end && own < end && !(begin == own && dst.size == src.size);
        // Sources advance, so the next repeat's is the first that can be hit.
        bool later = false;
        for (int64_t next = repeat + 1; next < repeats && !later; ++next) {
            const int64_t from = s + next * step_s;
            if (step_s && from >= end) break;
            later = begin < from + width_s && from < end;
            if (!step_s) break;
        }
        if (later || (partial && dst.size == src.size)) {
            fault("operand-overlap",
                  "%s: dst at UB byte %lld overlaps %s at %lld so that a repeat overwrites what is still read", api,
                  static_cast<long long>(d), src.name, static_cast<long long>(s));
        }
    }
}

}  // namespace emulator
