// The tiling function with a C interface, for emulated.py. Not part of the package.
#include "op_kernel/topk_distill_loss_tiling.h"

extern "C" {

const char* topk_distill_make_tiling(const TopkDistillLossProblem* problem, TopkDistillLossTiling* tiling) {
    return topk_distill::MakeTiling(*problem, *tiling);
}

uint64_t topk_distill_workspace_bytes(const TopkDistillLossTiling* tiling) {
    return topk_distill::WorkspaceBytes(*tiling);
}

int64_t topk_distill_needed_bytes(const TopkDistillLossTiling* tiling, int64_t logit_bytes) {
    return topk_distill::NeededBytes(tiling->lanes, tiling->tile, tiling->slots, tiling->floats, logit_bytes);
}

}  // extern "C"
