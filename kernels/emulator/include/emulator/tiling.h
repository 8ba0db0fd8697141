// How a kernel gets its tiling data and workspace, and what kind of kernel it is.
#pragma once

#include "sync.h"

namespace emulator {

template <typename Tiling>
Tiling load_tiling(const void* argument) {
    static_assert(std::is_trivially_copyable_v<Tiling>, "tiling data is a plain struct");
    const GmBuffer* buffer = find_gm(argument);
    if (!buffer || buffer->bytes != sizeof(Tiling)) {
        fault("tiling-size", "the kernel expects %zu bytes of tiling data, it was given %llu", sizeof(Tiling),
              static_cast<unsigned long long>(buffer ? buffer->bytes : 0));
    }
    core().counters.gm[buffer->name].read_bytes += sizeof(Tiling);
    Tiling tiling;
    std::memcpy(&tiling, argument, sizeof(Tiling));
    return tiling;
}

// Of the kernels without cube cores; only the mixed type starts the scheduler behind SyncAll() and cross-core flags.
enum KernelType { KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_MIX_AIV_1_0 };
inline void set_kernel_type(KernelType type) { core().hard_sync = type == KERNEL_TYPE_MIX_AIV_1_0; }

}  // namespace emulator

namespace AscendC {

inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }
inline void SetSysWorkspace(GM_ADDR workspace) { (void)workspace; }

}  // namespace AscendC

#define REGISTER_TILING_DEFAULT(STRUCT) using EmulatorTilingDefault = STRUCT
#define GET_TILING_DATA(NAME, ARGUMENT) \
    EmulatorTilingDefault NAME = emulator::load_tiling<EmulatorTilingDefault>(ARGUMENT)
#define GET_TILING_DATA_WITH_STRUCT(STRUCT, NAME, ARGUMENT) STRUCT NAME = emulator::load_tiling<STRUCT>(ARGUMENT)
#define GET_TILING_DATA_MEMBER(STRUCT, MEMBER, NAME, ARGUMENT) \
    auto NAME = emulator::load_tiling<STRUCT>(ARGUMENT).MEMBER
#define TILING_KEY_IS(KEY) (emulator::tiling_key() == static_cast<uint64_t>(KEY))
#define KERNEL_TASK_TYPE_DEFAULT(TYPE) emulator::set_kernel_type(emulator::TYPE)
#define KERNEL_TASK_TYPE(KEY, TYPE)                                        \
    do {                                                                   \
        if (TILING_KEY_IS(KEY)) emulator::set_kernel_type(emulator::TYPE); \
    } while (0)
