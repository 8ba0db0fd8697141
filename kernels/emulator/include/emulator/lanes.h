// How one vector instruction walks over its operands: repeats, mask, strides; and its checks, in bulk.
//
// A repeat covers 256 bytes of the widest operand. Inside it an operand advances by blocks of 32 bytes
// (`block_stride`), between repeats by `repeat_stride` blocks. A mask says which elements of a repeat take part, a
// count how many elements in all.
#pragma once

#include "sync.h"

namespace AscendC {

struct UnaryRepeatParams {
    UnaryRepeatParams() = default;
    UnaryRepeatParams(uint16_t dstBlk, uint16_t srcBlk, uint8_t dstRep, uint8_t srcRep)
        : dstBlkStride(dstBlk), srcBlkStride(srcBlk), dstRepStride(dstRep), srcRepStride(srcRep) {}
    uint16_t dstBlkStride = 1, srcBlkStride = 1;
    uint8_t dstRepStride = 8, srcRepStride = 8;
};

struct BinaryRepeatParams {
    BinaryRepeatParams() = default;
    BinaryRepeatParams(uint8_t dstBlk, uint8_t src0Blk, uint8_t src1Blk, uint8_t dstRep, uint8_t src0Rep,
                       uint8_t src1Rep)
        : dstBlkStride(dstBlk), src0BlkStride(src0Blk), src1BlkStride(src1Blk), dstRepStride(dstRep),
          src0RepStride(src0Rep), src1RepStride(src1Rep) {}
    uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1;
    uint8_t dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
};

}  // namespace AscendC

namespace emulator {

// The lowest `count` of 128 bits, as the two words of a mask.
inline void mask_of(uint64_t count, uint64_t& high, uint64_t& low) {
    low = count >= 64 ? ~0ull : (1ull << count) - 1;
    high = count <= 64 ? 0 : count >= 128 ? ~0ull : (1ull << (count - 64)) - 1;
}

// The API's repeatTime is an uint8_t, which would turn 256 into 0 unseen: this remembers what was given.
struct RepeatTime {
    int64_t value;
    template <typename N, typename = std::enable_if_t<std::is_integral_v<N>>>
    RepeatTime(N count) : value(static_cast<int64_t>(count)) {}
};

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
    // Elements that are contiguous when strides are: 0 where the mask has holes between repeats.
    uint64_t contiguous() const {
        if (counts) return total;
        uint64_t all_high, all_low;
        mask_of(per_repeat, all_high, all_low);
        const bool all = (low & all_low) == all_low && (high & all_high) == all_high;
        return all ? static_cast<uint64_t>(repeats) * per_repeat : 0;
    }
};

inline Lanes counted(uint32_t per_repeat, int64_t count) {
    if (count < 0) fault("count-range", "%s of %ld elements", core().api, count);
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.counts = true;
    lanes.total = static_cast<uint64_t>(count);
    lanes.repeats = static_cast<uint32_t>((lanes.total + per_repeat - 1) / per_repeat);
    return lanes;
}

template <typename Word>
Lanes masked(uint32_t per_repeat, MaskOf<Word> mask, RepeatTime repeats) {
    const char* api = core().api;
    if (repeats.value < 0 || repeats.value > 255)
        fault("repeat-range", "%s repeats %ld times: at most 255", api, repeats.value);
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.repeats = static_cast<uint32_t>(repeats.value);
    if (mask.bits) {
        lanes.high = mask.bits[1];
        lanes.low = mask.bits[0];
        if (per_repeat <= 64 && lanes.high)
            fault("mask-range", "%s: mask[1] is not 0, but a repeat has %u elements", api, per_repeat);
    } else {
        if (mask.count > per_repeat || mask.count == 0)
            fault("mask-range", "%s: mask %lu, but a repeat has %u elements", api, mask.count, per_repeat);
        mask_of(mask.count, lanes.high, lanes.low);
    }
    return lanes;
}

// How far an instruction goes: the API's forms (count) and (mask, repeatTime, repeatParams).
template <typename Params>
struct Extent {
    Lanes lanes;
    Params params;
};
template <typename Params>
Extent<Params> extent(uint32_t per_repeat, const Params& standard, int64_t count) {
    return {counted(per_repeat, count), standard};
}
template <typename Params>
Extent<Params> extent(uint32_t per_repeat, const Params&, Mask mask, RepeatTime repeats, const Params& params) {
    return {masked(per_repeat, mask, repeats), params};
}

// One operand of an instruction.
struct Operand {
    View view;
    uint32_t size;  // bytes an element
    uint32_t block_stride = 1, repeat_stride = 8;
    const char* name = "src";

    uint64_t offset(uint32_t repeat, uint32_t lane) const {
        const uint32_t in_repeat = lane * size;
        const uint64_t block = uint64_t{repeat} * repeat_stride + uint64_t{in_repeat / BLOCK} * block_stride;
        return block * BLOCK + in_repeat % BLOCK;
    }
    uint32_t address(uint32_t repeat, uint32_t lane) const {
        return view.address + static_cast<uint32_t>(offset(repeat, lane));
    }
    bool contiguous(const Lanes& lanes) const {
        // Repeats of the narrower operand of a cast are adjacent when their stride is what they fill.
        return block_stride == 1 && (lanes.repeats <= 1 || repeat_stride * BLOCK == lanes.per_repeat * size);
    }
};

// Reads or writes (`touch`) every contiguous piece of an operand that the lanes touch.
inline void touch(const Operand& operand, const Lanes& lanes,
                  uint32_t (View::*access)(const char*, uint64_t, uint64_t) const) {
    if (operand.contiguous(lanes) && lanes.contiguous()) {
        (operand.view.*access)(operand.name, 0, lanes.contiguous() * operand.size);
        return;
    }
    const uint32_t per_block = BLOCK / operand.size;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t start = 0; start < lanes.per_repeat; start += per_block) {
            uint32_t first = start, last = std::min(start + per_block, lanes.per_repeat);
            while (first < last && !lanes.active(repeat, first)) ++first;
            while (last > first && !lanes.active(repeat, last - 1)) --last;
            if (first == last) continue;
            (operand.view.*access)(operand.name, operand.offset(repeat, first), uint64_t{last - first} * operand.size);
        }
    }
}

// The documented rule on overlap: within a repeat operands coincide or are apart, and no repeat writes what a later one
// reads. Add, Sub, Mul, Max and Min may accumulate (`accumulates`): dst is src1 and one of their repeat strides is 0.
inline void check_overlap(const Operand& dst, const Operand& src, const Lanes& lanes, bool accumulates) {
    if (!lanes.repeats) return;
    const int64_t d = dst.view.address, s = src.view.address, repeats = lanes.repeats;
    const int64_t width_d = int64_t{lanes.per_repeat} * dst.size, width_s = int64_t{lanes.per_repeat} * src.size;
    const int64_t step_d = int64_t{dst.repeat_stride} * BLOCK, step_s = int64_t{src.repeat_stride} * BLOCK;
    if (d == s && dst.size == src.size && dst.block_stride == src.block_stride &&
        (repeats == 1 || (step_d && step_d == step_s)))
        return;
    if (accumulates && d == s && (step_d == 0 || step_s == 0)) return;
    if (dst.block_stride != 1 || src.block_stride != 1) return;  // interleaved blocks: left to the reader
    const int64_t tail = lanes.counts ? lanes.total - (repeats - 1) * lanes.per_repeat : lanes.per_repeat;
    if (d + step_d * (repeats - 1) + tail * dst.size <= s || s + step_s * (repeats - 1) + tail * src.size <= d) return;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        const bool last = repeat == repeats - 1;
        const int64_t begin = d + repeat * step_d, end = begin + (last ? tail * dst.size : width_d);
        const int64_t own = s + repeat * step_s, own_end = own + (last ? tail * src.size : width_s);
        bool hit = begin < own_end && own < end && begin != own && dst.size == src.size;
        // Sources advance, so the next repeat's is the first that can be hit.
        for (int64_t next = repeat + 1; next < repeats && !hit; ++next) {
            const int64_t from = s + next * step_s;
            if (from >= end) break;
            hit = begin < from + width_s;
        }
        if (hit) {
            fault("operand-overlap",
                  "%s: dst at UB byte %ld overlaps %s at %ld so that a repeat overwrites what is still read",
                  core().api, d, src.name, s);
        }
    }
}

}  // namespace emulator
