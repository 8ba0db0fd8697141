// Small kernels for tests/kernels/test_emulator.py. Each but the first few breaks one rule and nothing else.
// All take the same parameters: x and y of 4096 floats, w of 1024 int32 that are zero.
#pragma GCC optimize("O0")  // compiling these costs more than running them
#include "kernel_operator.h"

using namespace AscendC;

#define KERNEL(NAME, ...)                                                                      \
    extern "C" __global__ __aicore__ void NAME(GM_ADDR x_address, GM_ADDR y_address, GM_ADDR w_address) { \
        Room r(x_address, y_address, w_address);                                               \
        __VA_ARGS__                                                                            \
    }

// What follows on the event's second pipe sees all that its first pipe has done.
template <HardEvent event>
void Order() {
    SetFlag<event>(EVENT_ID0);
    WaitFlag<event>(EVENT_ID0);
}

// A pipe, two tensors in global memory, two buffers of 1024 floats and one of words.
struct Room {
    Room(GM_ADDR x_address, GM_ADDR y_address, GM_ADDR w_address) {
        x.SetGlobalBuffer((__gm__ float*)x_address);
        y.SetGlobalBuffer((__gm__ float*)y_address);
        w.SetGlobalBuffer((__gm__ int32_t*)w_address);
        pipe.InitBuffer(first, 4096);
        pipe.InitBuffer(second, 4096);
        pipe.InitBuffer(words, 4096);
        a = first.Get<float>();
        b = second.Get<float>();
        i = words.Get<int32_t>();
    }
    void Loaded() {  // a and b hold x, for the vector pipe
        DataCopy(a, x, 1024);
        DataCopy(b, x, 1024);
        Order<HardEvent::MTE2_V>();
    }
    void Filled() {  // the same without traffic
        Duplicate(a, 1.0f, 1024);
        Duplicate(b, 2.0f, 1024);
        PipeBarrier<PIPE_V>();
    }
    TPipe pipe;
    GlobalTensor<float> x, y;
    GlobalTensor<int32_t> w;
    TBuf<TPosition::VECCALC> first, second, words;
    LocalTensor<float> a, b;
    LocalTensor<int32_t> i;
};

// ---- right kernels ----

// y = x + 1, tile by tile, with a tail that is no multiple of 32 bytes.
extern "C" __global__ __aicore__ void add_one(GM_ADDR x_address, GM_ADDR y_address, GM_ADDR w_address) {
    Room r(x_address, y_address, w_address);
    const uint32_t share = 4093 / GetBlockNum() + 1, begin = GetBlockIdx() * share;
    const uint32_t end = begin + share < 4093 ? begin + share : 4093;
    for (uint32_t start = begin; start < end; start += 256) {
        const uint32_t length = end - start < 256 ? end - start : 256;
        DataCopyPad(r.a, r.x[start], DataCopyExtParams(1, length * 4, 0, 0, 0), DataCopyPadExtParams<float>());
        Order<HardEvent::MTE2_V>();
        Adds(r.b, r.a, 1.0f, static_cast<int32_t>(length));
        Order<HardEvent::V_MTE3>();
        DataCopyPad(r.y[start], r.b, DataCopyExtParams(1, length * 4, 0, 0, 0));
        Order<HardEvent::V_MTE2>();
        Order<HardEvent::MTE3_V>();
    }
}

// Core 0 hands 64 floats to core 1 through global memory, by whatever `hand` and `take` do.
template <typename Hand, typename Take>
void relay(Room& r, Hand hand, Take take) {
    if (GetBlockIdx() == 0) {
        Duplicate(r.a, 3.0f, 64);
        Order<HardEvent::V_MTE3>();
        DataCopy(r.y, r.a, 64);
        hand();
    } else {
        take();
        DataCopy(r.b, r.y, 64);
        Order<HardEvent::MTE2_MTE3>();
        DataCopy(r.y[64], r.b, 64);
    }
}
KERNEL(relay_hard, KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0); relay(r, [] { SyncAll(); }, [] { SyncAll(); });)
// dst and src1 coincide with a repeat stride of 0: the documented way to accumulate repeats.
KERNEL(accumulate, Duplicate(r.a, 1.0f, 1024); Duplicate(r.b, 0.0f, 64); PipeBarrier<PIPE_V>();
       Add(r.b, r.a, r.b, 64, 16, BinaryRepeatParams(1, 1, 1, 0, 8, 0)); Order<HardEvent::V_MTE3>();
       DataCopy(r.y, r.b, 64);)

// ---- memory ----

KERNEL(ub_overrun, r.Filled(); Adds(r.a[512], r.b, 1.0f, 513);)
KERNEL(ub_overrun_strided, r.Filled(); Adds(r.a, r.b, 1.0f, 64, 9, UnaryRepeatParams(2, 1, 16, 8));)
KERNEL(ub_overrun_scalar, r.a.SetValue(1024, 0.0f);)
KERNEL(ub_overrun_copy, DataCopyPad(r.a[1016], r.x, DataCopyExtParams(1, 36, 0, 0, 0), DataCopyPadExtParams<float>());)
KERNEL(gm_overrun, DataCopy(r.a, r.x[3584], 1024);)
KERNEL(gm_overrun_view, GlobalTensor<float> row; row.SetGlobalBuffer(r.x.GetPhyAddr(0), 100); DataCopy(r.a, row, 104);)
KERNEL(ub_misaligned, r.Filled(); Adds(r.a[4], r.b, 1.0f, 64);)
KERNEL(ub_misaligned_copy, DataCopyPad(r.a[1], r.x, DataCopyExtParams(1, 4, 0, 0, 0), DataCopyPadExtParams<float>());)
KERNEL(ub_misaligned_reduce, r.Filled(); WholeReduceMax<float>(r.a[1], r.b, 64, 1, 1, 1, 8);)
KERNEL(copy_length, DataCopy(r.a, r.x, 9);)
KERNEL(ub_overflow, TBuf<TPosition::VECCALC> big; r.pipe.InitBuffer(big, 173 * 1024);)
KERNEL(uninitialised, Adds(r.a, r.b, 1.0f, 64);)
KERNEL(uninitialised_padding, DataCopyPad(r.a, r.x, DataCopyExtParams(1, 20, 0, 0, 0), DataCopyPadExtParams<float>());
       Order<HardEvent::MTE2_V>(); Adds(r.b, r.a, 1.0f, 8);)
KERNEL(operand_overlap, r.Filled(); Adds(r.a[8], r.a, 1.0f, 512);)
KERNEL(operand_overlap_cast, r.Filled(); LocalTensor<half> h = r.a.ReinterpretCast<half>();
       Cast(r.a, h, RoundMode::CAST_NONE, 512);)

// ---- events ----

KERNEL(wait_without_set, WaitFlag<HardEvent::MTE2_V>(EVENT_ID3);)
KERNEL(flag_never_waited, SetFlag<HardEvent::V_MTE3>(EVENT_ID3);)
KERNEL(event_id, SetFlag<HardEvent::V_S>(8);)
KERNEL(event_reused, SetFlag<HardEvent::V_S>(EVENT_ID1); SetFlag<HardEvent::V_S>(EVENT_ID1);)

// ---- order within a core ----

KERNEL(get_after_vector, r.Filled(); r.a.GetValue(0);)
KERNEL(get_after_copy, DataCopy(r.a, r.x, 64); r.a.GetValue(0);)
KERNEL(set_after_vector_read, r.Filled(); Order<HardEvent::V_S>(); Adds(r.a, r.b, 1.0f, 64); r.b.SetValue(0, 1.0f);)
KERNEL(vector_after_set, r.a.SetValue(0, 1.0f); Adds(r.b, r.a, 1.0f, 1);)
KERNEL(vector_after_copy, DataCopy(r.a, r.x, 64); Adds(r.b, r.a, 1.0f, 64);)
KERNEL(copy_out_after_vector, Duplicate(r.a, 1.0f, 64); DataCopy(r.y, r.a, 64);)
KERNEL(copy_out_after_copy_in, DataCopy(r.a, r.x, 64); Order<HardEvent::MTE2_V>(); DataCopy(r.y, r.a, 64);)
KERNEL(copy_out_after_set, r.a.SetValue(0, 1.0f); DataCopyPad(r.y, r.a, DataCopyExtParams(1, 4, 0, 0, 0));)
KERNEL(copy_in_over_vector_read, r.Loaded(); PipeBarrier<PIPE_V>(); Adds(r.i.ReinterpretCast<float>(), r.a, 1.0f, 64);
       PipeBarrier<PIPE_MTE2>();
       DataCopy(r.a, r.x, 64);)
KERNEL(copy_in_over_copy_out, Duplicate(r.a, 1.0f, 64); Order<HardEvent::V_MTE3>(); Order<HardEvent::V_MTE2>();
       DataCopy(r.y, r.a, 64); DataCopy(r.a, r.x, 64);)
KERNEL(vector_over_copy_out, Duplicate(r.a, 1.0f, 64); Order<HardEvent::V_MTE3>(); DataCopy(r.y, r.a, 64);
       PipeBarrier<PIPE_V>(); Duplicate(r.a, 2.0f, 64);)
KERNEL(event_of_another_time, SetFlag<HardEvent::MTE2_V>(EVENT_ID0); DataCopy(r.a, r.x, 64);
       WaitFlag<HardEvent::MTE2_V>(EVENT_ID0); Adds(r.b, r.a, 1.0f, 64);)
KERNEL(vector_after_vector, Duplicate(r.a, 1.0f, 64); Adds(r.b, r.a, 1.0f, 64);)
KERNEL(vector_over_vector, Duplicate(r.a, 1.0f, 64); Duplicate(r.a, 2.0f, 64);)
KERNEL(copy_over_copy, DataCopy(r.a, r.x, 64); DataCopy(r.a, r.x[64], 64);)
KERNEL(copy_out_over_copy_out, Duplicate(r.a, 1.0f, 64); Order<HardEvent::V_MTE3>(); DataCopy(r.y, r.a, 64);
       DataCopy(r.y[32], r.a, 64);)
KERNEL(copy_in_after_copy_out, Duplicate(r.a, 1.0f, 64); Order<HardEvent::V_MTE3>(); DataCopy(r.y, r.a, 64);
       DataCopy(r.b, r.y, 64);)

// ---- instructions ----

KERNEL(repeat_range, r.Filled(); const int times = 256; Adds(r.a, r.b, 1.0f, 64, times, UnaryRepeatParams());)
KERNEL(repeat_range_reduce, r.Filled(); WholeReduceSum<float>(r.a, r.b, 64, 256, 1, 1, 0);)
KERNEL(mask_range, r.Filled(); Adds(r.a, r.b, 1.0f, 65, 1, UnaryRepeatParams());)
KERNEL(mask_range_bits, r.Filled(); uint64_t mask[2] = {~0ull, 1}; Adds(r.a, r.b, 1.0f, mask, 1, UnaryRepeatParams());)
KERNEL(cast_mode, r.Filled(); Cast(r.i.ReinterpretCast<bfloat16_t>(), r.a, RoundMode::CAST_NONE, 64);)
KERNEL(pad_range, DataCopyPad(r.a, r.x, DataCopyExtParams(1, 20, 0, 0, 0),
       DataCopyPadExtParams<float>(true, 9, 0, 0.0f));)
KERNEL(copy_range, DataCopyPad(r.a, r.x, DataCopyExtParams(4096, 4, 0, 0, 0), DataCopyPadExtParams<float>());)

// ---- several cores ----

KERNEL(race_write_write, r.Filled(); Order<HardEvent::V_MTE3>(); DataCopy(r.y[32 * GetBlockIdx()], r.a, 64);)
KERNEL(race_read_write, relay(r, [] {}, [] {});)
KERNEL(race_write_read, if (GetBlockIdx() == 0) { DataCopy(r.b, r.y, 64); } else { r.Filled();
       Order<HardEvent::V_MTE3>(); DataCopy(r.y, r.a, 64); })
KERNEL(deadlock_sync, KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0); if (GetBlockIdx() == 0) SyncAll();)
KERNEL(kernel_type, SyncAll();)

// ---- numbers ----

// Each writes what it worked out to y.
KERNEL(whole_reductions, r.Loaded(); Duplicate(r.b, 0.0f, 1024); PipeBarrier<PIPE_V>();
       WholeReduceMax<float>(r.b, r.a, 64, 16, 1, 1, 8);
       WholeReduceMax<float>(r.b[32], r.a, 64, 16, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
       WholeReduceSum<float>(r.b[48], r.a, 64, 16, 1, 1, 8); WholeReduceMin<float>(r.b[64], r.a, 50, 1, 1, 1, 8);
       Order<HardEvent::V_MTE3>(); DataCopy(r.y, r.b, 1024);)
// y is seen as halves and bf16.
KERNEL(casts, r.Loaded(); LocalTensor<half> h = r.b.ReinterpretCast<half>(); Cast(h, r.a, RoundMode::CAST_RINT, 512);
       PipeBarrier<PIPE_V>(); Cast(r.b.ReinterpretCast<bfloat16_t>()[512], r.a, RoundMode::CAST_RINT, 512);
       PipeBarrier<PIPE_V>();
       Cast(r.b.ReinterpretCast<bfloat16_t>()[1024], r.a, RoundMode::CAST_TRUNC, 256);
       Cast(h[1280], r.a, RoundMode::CAST_CEIL, 256); Order<HardEvent::V_MTE3>(); DataCopy(r.y, r.b, 768);)
KERNEL(masks, Duplicate(r.a, 1.0f, 1024); Duplicate(r.b, 0.0f, 1024); PipeBarrier<PIPE_V>();
       uint64_t odd[2] = {0xAAAAAAAAAAAAAAAAull, 0}; Adds(r.b, r.a, 1.0f, odd, 2, UnaryRepeatParams());
       Adds(r.b[128], r.a, 2.0f, 10, 2, UnaryRepeatParams(1, 1, 4, 8)); Order<HardEvent::V_MTE3>(); DataCopy(r.y, r.b, 1024);)
// Copies of several bursts with gaps, and padding on both sides.
KERNEL(copies, DataCopyPad(r.a, r.x, DataCopyExtParams(3, 20, 12, 1, 0), DataCopyPadExtParams<float>(true, 1, 2,
           -1.0f));
       Order<HardEvent::MTE2_MTE3>(); DataCopyPad(r.y, r.a, DataCopyExtParams(3, 32, 1, 8, 0));)
// Three floats, one of padding, and the rest of the block, which padding fills too.
KERNEL(padding, DataCopyPad(r.a, r.x, DataCopyExtParams(1, 12, 0, 0, 0), DataCopyPadExtParams<float>(true, 0, 1, 7.0f));
       Order<HardEvent::MTE2_MTE3>(); DataCopy(r.y, r.a, 8);)
KERNEL(work, r.Loaded(); Exp(r.a, r.a, 1000); PipeBarrier<PIPE_V>();
       Cast(r.b.ReinterpretCast<bfloat16_t>(), r.a, RoundMode::CAST_RINT, 1000); Order<HardEvent::V_S>();
       r.a.GetValue(3); PipeBarrier<PIPE_V>();
       Max(r.i.ReinterpretCast<int16_t>(), r.b.ReinterpretCast<int16_t>(), r.b.ReinterpretCast<int16_t>(), 1000);)

struct Tiling {
    uint32_t count;
    float value;
};

extern "C" __global__ __aicore__ void tiled(GM_ADDR y_address, GM_ADDR tiling) {
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(Tiling);
    GET_TILING_DATA(data, tiling);
    if (GetBlockIdx() != 0) return;
    TPipe pipe;
    TBuf<TPosition::VECCALC> buffer;
    pipe.InitBuffer(buffer, 256);
    GlobalTensor<float> y;
    y.SetGlobalBuffer((__gm__ float*)y_address);
    LocalTensor<float> a = buffer.Get<float>();
    Duplicate(a, data.value, static_cast<int32_t>(data.count));
    Order<HardEvent::V_MTE3>();
    DataCopyPad(y, a, DataCopyExtParams(1, data.count * 4, 0, 0, 0));
}
