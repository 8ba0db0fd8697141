// What the vendor's headers do not accept on A2 and A3. Every line marked "refused" must be an error of the compiler.
#include "kernel_operator.h"

using namespace AscendC;

void Refused(LocalTensor<float> f, LocalTensor<half> h, LocalTensor<bfloat16_t> b, LocalTensor<int32_t> i,
             GlobalTensor<float> g, TPipe& pipe) {
    Exp(b, b, 64);                                                             // refused
    Adds(b, b, bfloat16_t(1), 64);                                             // refused
    WholeReduceMax<int32_t>(i, i, 64, 1, 1, 1, 8);                             // refused
    Max(b, b, b, 64);                                                          // refused
    Div(i, i, i, 64);                                                          // refused
    And(i, i, i, 64);                                                          // refused
    Ln(i, i, 64);                                                              // refused
    Cast(f, f, RoundMode::CAST_RINT, 64);                                      // refused
    Cast(h, b, RoundMode::CAST_NONE, 64);                                      // refused
    Adds(f, f, 1, 64);                                                         // refused
    Add(f, f, h, 64);                                                          // refused
    Axpy(h, f, 1.0f, 64);                                                      // refused
    PipeBarrier<PIPE_S>();                                                     // refused
    SyncAll<false>();                                                          // refused
    DataCopy(g, h, 64);                                                        // refused
    TBuf<TPosition::VECCALC> buffer;
    pipe.InitBuffer(buffer, 2, 64);                                            // refused
    float x = b.GetValue(0);                                                   // refused
    bfloat16_t y = bfloat16_t(1.5f);                                           // refused
    SetFlag<HardEvent::MTE1_M>(0);                                             // refused
}
