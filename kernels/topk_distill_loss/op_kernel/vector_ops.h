// Vector instructions as this kernel uses them: each waits for the ones before it, so that the kernel is right with the
// compiler's auto-sync off, and each takes a count. Lengths are in elements.
#pragma once

#include "kernel_operator.h"
#include "topk_distill_loss_tiling.h"

namespace topk_distill {

using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using Floats = LocalTensor<float>;

constexpr float FAR_LOGIT = -1e30f;  // finite: 0 * FAR is 0 where 0 * -inf is NaN, and exp(FAR) is 0
constexpr float SMALLEST = 1e-37f;   // just above the smallest normal float
constexpr uint32_t FLOATS_A_REPEAT = 64;

// The event id of a wait right after its set. Ids 0 to 4 belong to the ring of tiles, 6 and 7 to the system.
constexpr int32_t AT_ONCE = 5;

// What follows on the second pipe of `event` sees all that the first pipe has done.
template <HardEvent event>
__aicore__ inline void Order() {
    AscendC::SetFlag<event>(AT_ONCE);
    AscendC::WaitFlag<event>(AT_ONCE);
}

__aicore__ inline void Then() { AscendC::PipeBarrier<PIPE_V>(); }

// `count` elements, any number of them.
template <typename U>
__aicore__ inline void CopyIn(const LocalTensor<U>& dst, const GlobalTensor<U>& src, uint32_t count) {
    const AscendC::DataCopyExtParams shape(1, static_cast<uint32_t>(count * sizeof(U)), 0, 0, 0);
    AscendC::DataCopyPad(dst, src, shape, AscendC::DataCopyPadExtParams<U>());
}
template <typename U>
__aicore__ inline void CopyOut(const GlobalTensor<U>& dst, const LocalTensor<U>& src, uint32_t count) {
    const AscendC::DataCopyExtParams shape(1, static_cast<uint32_t>(count * sizeof(U)), 0, 0, 0);
    AscendC::DataCopyPad(dst, src, shape);
}

// An instruction on floats, whose last argument is a count. By value: constants have no address on the device.
#define TOPK_DISTILL_FLOATS(NAME, INSTRUCTION)                               \
    template <typename... Arguments>                                         \
    __aicore__ inline void NAME(const Floats& dst, Arguments... arguments) { \
        AscendC::INSTRUCTION(dst, arguments...);                             \
        Then();                                                              \
    }
TOPK_DISTILL_FLOATS(Fill, Duplicate)
TOPK_DISTILL_FLOATS(AddScalar, Adds)
TOPK_DISTILL_FLOATS(Scale, Muls)
TOPK_DISTILL_FLOATS(AddScaled, Axpy)  // dst += src * value
TOPK_DISTILL_FLOATS(AtLeast, Maxs)
TOPK_DISTILL_FLOATS(Exponential, Exp)
TOPK_DISTILL_FLOATS(Logarithm, Ln)
TOPK_DISTILL_FLOATS(Plus, Add)
TOPK_DISTILL_FLOATS(Subtract, Sub)
TOPK_DISTILL_FLOATS(Multiply, Mul)
TOPK_DISTILL_FLOATS(Larger, Max)
#undef TOPK_DISTILL_FLOATS

// The sums or maxima of `repeats` repeats, of the first `lanes` of each.
template <bool maximum>
__aicore__ inline void ReduceRepeats(const Floats& dst, const Floats& src, int32_t lanes, int32_t repeats) {
    if constexpr (maximum) {
        constexpr AscendC::ReduceOrder value = AscendC::ReduceOrder::ORDER_ONLY_VALUE;
        AscendC::WholeReduceMax<float>(dst, src, lanes, repeats, 1, 1, 8, value);
    } else {
        AscendC::WholeReduceSum<float>(dst, src, lanes, repeats, 1, 1, 8);
    }
}

// One number for every 64: their sum, or their maximum. Returns how many numbers that makes.
template <bool maximum>
__aicore__ inline uint32_t Reduce64(const Floats& dst, const Floats& src, uint32_t count) {
    const int32_t full = static_cast<int32_t>(count / FLOATS_A_REPEAT);
    const int32_t rest = static_cast<int32_t>(count % FLOATS_A_REPEAT);
    if (full) ReduceRepeats<maximum>(dst, src, FLOATS_A_REPEAT, full);
    if (full && rest) Then();  // both write the same block of 32 bytes
    if (rest) ReduceRepeats<maximum>(dst[full], src[full * FLOATS_A_REPEAT], rest, 1);
    Then();
    return static_cast<uint32_t>(full + (rest > 0));
}

// dst[0] = the sum (or maximum) of at most 4096 floats; `fold` is scratch of 64.
template <bool maximum>
__aicore__ inline void Reduce(const Floats& dst, const Floats& src, const Floats& fold, uint32_t count) {
    const bool once = count <= FLOATS_A_REPEAT;
    const uint32_t left = Reduce64<maximum>(once ? dst : fold, src, count);
    if (!once) Reduce64<maximum>(dst, fold, left);
}

// What the vector unit has put into the first place of a scratch tensor.
__aicore__ inline float FirstOf(const Floats& scratch) {
    Order<HardEvent::V_S>();
    const float value = scratch.GetValue(0);
    Order<HardEvent::S_V>();
    return value;
}

__aicore__ inline float LargerOf(float a, float b) { return a > b ? a : b; }

// A logit of a tile as a float, and the lowest finite logit in its place.
__aicore__ inline float TakeOut(const Floats& tile, uint32_t at) {
    const float value = tile.GetValue(at);
    tile.SetValue(at, -3.4e38f);
    return value;
}
__aicore__ inline float TakeOut(const LocalTensor<half>& tile, uint32_t at) {
    const float value = static_cast<float>(tile.GetValue(at));
    tile.ReinterpretCast<uint16_t>().SetValue(at, static_cast<uint16_t>(0xfbff));
    return value;
}
__aicore__ inline float TakeOut(const LocalTensor<bfloat16_t>& tile, uint32_t at) {
    const float value = AscendC::ToFloat(tile.GetValue(at));
    tile.ReinterpretCast<uint16_t>().SetValue(at, static_cast<uint16_t>(0xff7f));
    return value;
}

__aicore__ inline void PutIn(const Floats& tile, uint32_t at, float value) { tile.SetValue(at, value); }
__aicore__ inline void PutIn(const LocalTensor<half>& tile, uint32_t at, float value) {
    tile.SetValue(at, static_cast<half>(value));
}
__aicore__ inline void PutIn(const LocalTensor<bfloat16_t>& tile, uint32_t at, float value) {
    tile.SetValue(at, AscendC::ToBfloat16(value));
}

}  // namespace topk_distill
