// The kernel's entry. DTYPE_LOGITS is the type of the logits, defined by the build for each of its binaries.
#include "topk_distill_loss.h"

extern "C" __global__ __aicore__ void topk_distill_loss(
    GM_ADDR logits, GM_ADDR target_ids, GM_ADDR teacher_ids, GM_ADDR teacher_logp, GM_ADDR teacher_tail_logp,
    GM_ADDR row_weight, GM_ADDR logits_ref, GM_ADDR ce, GM_ADDR kd, GM_ADDR diagnostics, GM_ADDR workspace,
    GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(TopkDistillLossTiling);
    GET_TILING_DATA(tilingData, tiling);
    // Vector cores only. This type also starts the scheduler that SyncAll needs (two cores a row).
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);
    AscendC::TPipe pipe;
    topk_distill::TopkDistillLossKernel<DTYPE_LOGITS> kernel;
    kernel.Init(logits, target_ids, teacher_ids, teacher_logp, teacher_tail_logp, row_weight, logits_ref, ce, kd,
                diagnostics, AscendC::GetUserWorkspace(workspace), tilingData, &pipe);
    kernel.Process();
}
