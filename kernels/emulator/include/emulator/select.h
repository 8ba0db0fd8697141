// Comparison into bit masks, selection by bit masks, and Gather; each with a count.
#pragma once

#include "vector.h"

namespace emulator {

template <typename T>
bool compared(T x, T y, AscendC::CMPMODE mode) {
    using Mode = AscendC::CMPMODE;
    const Compute<T> a = static_cast<Compute<T>>(x), b = static_cast<Compute<T>>(y);
    switch (mode) {
        case Mode::LT: return a < b;
        case Mode::GT: return a > b;
        case Mode::EQ: return a == b;
        case Mode::LE: return a <= b;
        case Mode::GE: return a >= b;
        default: return a != b;
    }
}

// A source of an instruction with a count: a tensor, or a scalar that stands for every element.
template <typename T>
struct Elements {
    const T* data;
    uint64_t step;
    T operator[](uint64_t i) const { return data[i * step]; }
};
template <typename T>
Elements<T> elements(const AscendC::LocalTensor<T>& src, const char* name, uint64_t count) {
    src.view.check(name);
    return {ub_pointer<T>(src.view.read(name, 0, count * sizeof(T))), 1};
}
template <typename T>
Elements<T> elements(const T& scalar, const char*, uint64_t) {
    return {&scalar, 0};
}

// One bit an element, from whole repeats.
template <typename T, typename U, typename Second>
void compare(const char* api, const AscendC::LocalTensor<U>& dst, const AscendC::LocalTensor<T>& src0,
             const Second& src1, AscendC::CMPMODE mode, uint32_t count) {
    static_assert(one_of<T, half, float, int32_t>, "Compare and CompareScalar take half, float and int32_t");
    static_assert(one_of<U, int8_t, uint8_t>, "the result of a comparison is a tensor of int8_t or uint8_t");
    core().begin(V, api);
    if (std::is_same_v<T, int32_t> && mode != AscendC::CMPMODE::EQ)
        fault("compare-mode", "%s of int32_t compares for equality only", api);
    if (count % per_repeat<T>)
        fault("compare-count", "%s of %u elements: they must fill multiples of 256 bytes", api, count);
    dst.view.check("dst");
    core().count_repeats(count / per_repeat<T>);
    const Elements<T> first = elements(src0, "src0", count), second = elements(src1, "src1", count);
    const uint32_t to = dst.view.write("dst", 0, count / 8);
    std::vector<uint8_t> bits(count / 8, 0);  // apart: dst may lie on a source
    for (uint32_t i = 0; i < count; ++i) {
        bits[i / 8] |= static_cast<uint8_t>(compared(first[i], second[i], mode) << i % 8);
    }
    std::copy(bits.begin(), bits.end(), core().ub + to);
}

// dst = bit ? src0 : src1 over adjacent elements. In mode 0 one repeat's bits serve all repeats; else the bits run on.
template <typename T, typename U, typename... Sources, typename Choose>
void select(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<U>& bits, AscendC::SELMODE mode,
            uint32_t count, Choose choose, const Sources&... sources) {
    static_assert(one_of<T, half, float>, "Select takes half and float");
    static_assert(one_of<U, uint8_t, uint16_t, uint32_t, uint64_t>, "selMask is of an unsigned type");
    core().begin(V, "Select");
    if ((mode == AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE) != (sizeof...(Sources) == 1))
        fault("select-mode", "Select mode %d does not go with these sources", static_cast<int>(mode));
    const bool runs_on = mode != AscendC::SELMODE::VSEL_CMPMASK_SPR;
    const Lanes lanes = counted(per_repeat<T>, count);
    if (runs_on) core().counters.repeats["Select"] += 1;  // it first fills a block of the reserved 8 KB
    bits.view.check("selMask");
    const uint64_t used = runs_on ? count : per_repeat<T>;
    const uint8_t* flags = ub_pointer<uint8_t>(bits.view.read("selMask", 0, (used + 7) / 8));
    uint64_t lane = 0;
    apply<T, typename Sources::PrimType...>(
        lanes, {dst.view, sizeof(T), 1, 8, "dst"}, {Operand{sources.view, sizeof(T)}...}, [&](auto... values) {
            const uint64_t bit = runs_on ? lane : lane % per_repeat<T>;
            ++lane;
            return choose(flags[bit / 8] >> bit % 8 & 1, values...);
        });
}

}  // namespace emulator

namespace AscendC {

template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             uint32_t count) {
    emulator::compare("Compare", dst, src0, src1, cmpMode, count);
}
template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const T src1Scalar, CMPMODE cmpMode,
                   uint32_t count) {
    emulator::compare("CompareScalar", dst, src0, src1Scalar, cmpMode, count);
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, uint32_t count) {
    const auto choose = [](bool chosen, T a, T b) { return chosen ? a : b; };
    emulator::select(dst, selMask, selMode, count, choose, src0, src1);
}
template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, uint32_t count) {
    const auto choose = [src1](bool chosen, T a) { return chosen ? a : src1; };
    emulator::select(dst, selMask, selMode, count, choose, src0);
}

// dst[i] = the element of src at byte srcOffset[i] + srcBaseOffset.
template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<uint32_t>& srcOffset,
            const uint32_t srcBaseOffset, const uint32_t count) {
    using namespace emulator;
    static_assert(one_of<T, half, bfloat16_t, uint16_t, int16_t, float, uint32_t, int32_t>,
                  "Gather does not take this type");
    core().begin(V, "Gather");
    dst.view.check("dst");
    src.view.check("src");
    core().count_repeats(counted(per_repeat<T>, count).repeats);
    const Elements<uint32_t> offsets = elements(srcOffset, "srcOffset", count);
    std::vector<T> values;
    for (uint32_t i = 0; i < count; ++i) {
        const uint64_t place = uint64_t{offsets[i]} + srcBaseOffset;
        if (place % sizeof(T)) fault("gather-offset", "Gather: offset %lu cuts an element", place);
        values.push_back(*ub_pointer<T>(src.view.read("src", place, sizeof(T))));
    }
    core().counters.scalar["Gather"] += values.size();
    std::copy(values.begin(), values.end(), ub_pointer<T>(dst.view.write("dst", 0, count * sizeof(T))));
}

}  // namespace AscendC
