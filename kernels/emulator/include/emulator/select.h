// Comparison into bit masks, selection by bit masks, and Gather.
#pragma once

#include "vector.h"

namespace emulator {

template <typename T>
bool compared(T x, T y, AscendC::CMPMODE mode) {
    using Mode = AscendC::CMPMODE;
    const Compute<T> a = static_cast<Compute<T>>(x), b = static_cast<Compute<T>>(y);
    switch (mode) {
        case Mode::LT:
            return a < b;
        case Mode::GT:
            return a > b;
        case Mode::EQ:
            return a == b;
        case Mode::LE:
            return a <= b;
        case Mode::GE:
            return a >= b;
        default:
            return a != b;
    }
}

template <typename T, typename U>
void check_compare(AscendC::CMPMODE mode, const char* api) {
    static_assert(one_of<T, half, float, int32_t>, "Compare and CompareScalar take half, float and int32_t");
    static_assert(one_of<U, int8_t, uint8_t>, "the result of a comparison is a tensor of int8_t or uint8_t");
    if (std::is_same_v<T, int32_t> && mode != AscendC::CMPMODE::EQ)
        fault("compare-mode", "%s of int32_t compares for equality only", api);
}

// One bit an element, repeats side by side. The vector unit compares whole repeats: the mask plays no part.
template <typename T, typename U, typename F>
void compare(const AscendC::LocalTensor<U>& dst, const Operand& first, const Operand* second, uint32_t repeats,
             const char* api, F bit) {
    Lanes lanes;
    lanes.repeats = repeats;
    lanes.per_repeat = per_repeat<T>;
    dst.view.check_alive(api);
    dst.view.check_aligned(api, "dst");
    core().begin(V);
    core().count_repeats(api, repeats);
    for (const Operand* operand : {&first, second}) {
        if (!operand) continue;
        operand->view.check_alive(api);
        operand->view.check_aligned(api, operand->name);
        touch_read(*operand, lanes, api);
    }
    const uint32_t bytes = repeats * lanes.per_repeat / 8;
    const uint32_t to = dst.view.at(api, "dst", 0, bytes);
    core().write_ub(V, to, bytes, api);
    uint8_t* bits = core().ub + to;
    std::vector<uint8_t> result(bytes, 0);  // apart: dst may lie on a source
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) {
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            const uint32_t index = repeat * lanes.per_repeat + lane;
            if (bit(repeat, lane)) result[index / 8] |= static_cast<uint8_t>(1 << index % 8);
        }
    }
    if (bytes) std::memcpy(bits, result.data(), bytes);
}

template <typename T>
T element(const Operand& operand, uint32_t repeat, uint32_t lane) {
    return *ub_pointer<T>(operand.view.address + static_cast<uint32_t>(operand.offset(repeat, lane)));
}

template <typename T>
uint32_t whole_repeats(uint32_t count, const char* api) {
    const uint64_t bytes = static_cast<uint64_t>(count) * sizeof(T);
    if (bytes % REPEAT_BYTES) {
        fault("compare-count", "%s of %u elements: they must fill multiples of 256 bytes", api, count);
    }
    return static_cast<uint32_t>(bytes / REPEAT_BYTES);
}

template <typename T, typename U>
void compare_tensors(const AscendC::LocalTensor<U>& dst, const Operand& a, const Operand& b, AscendC::CMPMODE mode,
                     uint32_t repeats) {
    check_compare<T, U>(mode, "Compare");
    compare<T>(dst, a, &b, repeats, "Compare",
               [&](uint32_t r, uint32_t l) { return compared(element<T>(a, r, l), element<T>(b, r, l), mode); });
}

template <typename T, typename U>
void compare_scalar(const AscendC::LocalTensor<U>& dst, const Operand& a, T scalar, AscendC::CMPMODE mode,
                    uint32_t repeats) {
    check_compare<T, U>(mode, "CompareScalar");
    compare<T>(dst, a, nullptr, repeats, "CompareScalar",
               [&](uint32_t r, uint32_t l) { return compared(element<T>(a, r, l), scalar, mode); });
}

// dst = bit ? src0 : src1. In mode 0 one repeat's bits serve all repeats; in modes 1 and 2 the bits run on.
template <typename T, typename U>
void select(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& bits, const Operand& first,
            const Operand* second, T scalar, AscendC::SELMODE mode, const Lanes& lanes, const Operand& target) {
    static_assert(one_of<T, half, float>, "Select takes half and float");
    static_assert(one_of<U, uint8_t, uint16_t, uint32_t, uint64_t>, "selMask is of an unsigned type");
    const char* api = "Select";
    const bool scalar_mode = mode == AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE;
    if (scalar_mode == (second != nullptr))
        fault("select-mode", "Select mode %d does not go with these sources", static_cast<int>(mode));
    const bool runs_on = mode != AscendC::SELMODE::VSEL_CMPMASK_SPR;
    Core& c = core();
    c.begin(V);
    c.count_repeats(api, lanes.repeats + (runs_on ? 1 : 0));  // modes 1 and 2 first fill a block of the reserved 8 KB
    dst.view.check_alive(api);
    dst.view.check_aligned(api, "dst");
    bits.view.check_alive(api);
    bits.view.check_aligned(api, "selMask");
    const uint64_t needed = (runs_on ? static_cast<uint64_t>(lanes.repeats) : lanes.repeats ? 1 : 0) * lanes.per_repeat;
    const uint64_t used = runs_on && lanes.counts ? lanes.total : needed;
    c.read_ub(V, bits.view.at(api, "selMask", 0, (used + 7) / 8), static_cast<uint32_t>((used + 7) / 8), api);
    for (const Operand* operand : {&first, second}) {
        if (!operand) continue;
        operand->view.check_alive(api);
        operand->view.check_aligned(api, operand->name);
        check_overlap(target, *operand, lanes, false, api);
        touch_read(*operand, lanes, api);
    }
    touch_write(target, lanes, api);
    const uint8_t* flags = c.ub + bits.view.address;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        T results[REPEAT_BYTES / 2];
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!lanes.active(repeat, lane)) continue;
            const uint64_t bit = (runs_on ? static_cast<uint64_t>(repeat) * lanes.per_repeat : 0) + lane;
            const bool chosen = flags[bit / 8] >> bit % 8 & 1;
            results[lane] = chosen   ? element<T>(first, repeat, lane)
                            : second ? element<T>(*second, repeat, lane)
                                     : scalar;
        }
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (lanes.active(repeat, lane)) {
                *ub_pointer<T>(target.view.address + static_cast<uint32_t>(target.offset(repeat, lane))) =
                    results[lane];
            }
        }
    }
}

// dst[i] = the element of src at byte offset[i] + base.
template <typename T>
void gather(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
            const AscendC::LocalTensor<uint32_t>& offsets, uint32_t base, const Lanes& lanes, uint32_t repeat_stride) {
    static_assert(one_of<T, half, bfloat16_t, uint16_t, int16_t, float, uint32_t, int32_t>,
                  "Gather does not take this type");
    const char* api = "Gather";
    Core& c = core();
    for (const View* view : {&dst.view, &src.view, &offsets.view}) {
        view->check_alive(api);
        view->check_aligned(api, "operand");
    }
    c.begin(V);
    c.count_repeats(api, lanes.repeats);
    Operand target{dst.view, sizeof(T), 1, repeat_stride, "dst"};
    Operand places{offsets.view, 4, 1, per_repeat<T> * 4 / BLOCK, "srcOffset"};
    touch_read(places, lanes, api);
    std::vector<T> values;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!lanes.active(repeat, lane)) continue;
            const uint64_t place = static_cast<uint64_t>(element<uint32_t>(places, repeat, lane)) + base;
            if (place % sizeof(T))
                fault("gather-offset", "Gather: offset %llu cuts an element", static_cast<unsigned long long>(place));
            const uint32_t from = src.view.at(api, "src", place, sizeof(T));
            c.read_ub(V, from, sizeof(T), api);
            values.push_back(*ub_pointer<T>(from));
        }
    }
    c.counters.scalar["Gather"] += values.size();
    touch_write(target, lanes, api);
    size_t next = 0;
    for (uint32_t repeat = 0; repeat < lanes.repeats; ++repeat) {
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!lanes.active(repeat, lane)) continue;
            *ub_pointer<T>(target.view.address + static_cast<uint32_t>(target.offset(repeat, lane))) = values[next++];
        }
    }
}

}  // namespace emulator

namespace AscendC {

template <typename T, typename U, bool isSetMask = true>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             emulator::ConstMask, const emulator::RepeatTime repeatTime, const BinaryRepeatParams& repeatParams) {
    emulator::compare_tensors<T>(dst, emulator::first_src(src0, repeatParams), emulator::second_src(src1, repeatParams),
                                 cmpMode, emulator::repeats_of(repeatTime, "Compare"));
}
template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             uint32_t count) {
    const BinaryRepeatParams plain;
    emulator::compare_tensors<T>(dst, emulator::first_src(src0, plain), emulator::second_src(src1, plain), cmpMode,
                                 emulator::whole_repeats<T>(count, "Compare"));
}
template <typename T, typename U, bool isSetMask = true>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,
                   emulator::ConstMask, const emulator::RepeatTime repeatTime, const UnaryRepeatParams& repeatParams) {
    emulator::compare_scalar<T>(dst, emulator::unary_src(src0, repeatParams), src1Scalar, cmpMode,
                                emulator::repeats_of(repeatTime, "CompareScalar"));
}
template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,
                   uint32_t count) {
    emulator::compare_scalar<T>(dst, emulator::unary_src(src0, UnaryRepeatParams()), src1Scalar, cmpMode,
                                emulator::whole_repeats<T>(count, "CompareScalar"));
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, emulator::Mask mask, const emulator::RepeatTime repeatTime,
            const BinaryRepeatParams& repeatParams) {
    using namespace emulator;
    const Operand second = second_src(src1, repeatParams);
    select(dst, selMask, first_src(src0, repeatParams), &second, T(0), selMode,
           masked<isSetMask>(per_repeat<T>, mask, repeatTime, "Select"), unary_dst(dst, repeatParams));
}
template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, emulator::Mask mask, const emulator::RepeatTime repeatTime,
            const BinaryRepeatParams& repeatParams) {
    using namespace emulator;
    select(dst, selMask, first_src(src0, repeatParams), static_cast<const Operand*>(nullptr), src1, selMode,
           masked<isSetMask>(per_repeat<T>, mask, repeatTime, "Select"), unary_dst(dst, repeatParams));
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, uint32_t count) {
    using namespace emulator;
    const BinaryRepeatParams plain;
    const Operand second = second_src(src1, plain);
    select(dst, selMask, first_src(src0, plain), &second, T(0), selMode, counted(per_repeat<T>, count, "Select"),
           unary_dst(dst, plain));
}
template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, uint32_t count) {
    using namespace emulator;
    const BinaryRepeatParams plain;
    select(dst, selMask, first_src(src0, plain), static_cast<const Operand*>(nullptr), src1, selMode,
           counted(per_repeat<T>, count, "Select"), unary_dst(dst, plain));
}

template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
            const uint32_t srcBaseOffset, const emulator::ConstMask mask, const emulator::RepeatTime repeatTime,
            const uint16_t dstRepStride) {
    using namespace emulator;
    gather(dst, src, srcOffset, srcBaseOffset, masked<true>(per_repeat<T>, mask, repeatTime, "Gather"), dstRepStride);
}
template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
            const uint32_t srcBaseOffset, const uint32_t count) {
    using namespace emulator;
    gather(dst, src, srcOffset, srcBaseOffset, counted(per_repeat<T>, count, "Gather"), 8);
}

}  // namespace AscendC
