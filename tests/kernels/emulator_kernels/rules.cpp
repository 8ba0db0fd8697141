// Small kernels, each breaking one rule (or none), for tests/kernels/test_emulator.py.
#include "kernel_operator.h"

using namespace AscendC;

extern "C" __global__ __aicore__ void add_one(GM_ADDR x, GM_ADDR y) {
    TPipe pipe;
    TQue<TPosition::VECIN, 2> in;
    TQue<TPosition::VECOUT, 2> out;
    pipe.InitBuffer(in, 2, 1024);
    pipe.InitBuffer(out, 2, 1024);
    GlobalTensor<float> source, target;
    source.SetGlobalBuffer((__gm__ float*)x, 1000);
    target.SetGlobalBuffer((__gm__ float*)y, 1000);
    for (uint32_t start = 0; start < 1000; start += 256) {
        const uint32_t length = 1000 - start < 256 ? 1000 - start : 256;
        LocalTensor<float> loaded = in.AllocTensor<float>();
        DataCopyPad(loaded, source[start], DataCopyExtParams(1, length * 4, 0, 0, 0), DataCopyPadExtParams<float>());
        in.EnQue(loaded);
        loaded = in.DeQue<float>();
        LocalTensor<float> sum = out.AllocTensor<float>();
        Adds(sum, loaded, 1.0f, (int32_t)length);
        in.FreeTensor(loaded);
        out.EnQue(sum);
        sum = out.DeQue<float>();
        DataCopyPad(target[start], sum, DataCopyExtParams(1, length * 4, 0, 0, 0));
        out.FreeTensor(sum);
    }
}
