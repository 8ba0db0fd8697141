// Events between pipes, barriers, and synchronisation between cores.
#pragma once

#include "tensor.h"

namespace emulator {

template <pipe_t pipe>
constexpr Pipe pipe_of() {
    static_assert(pipe == PIPE_S || pipe == PIPE_V || pipe == PIPE_MTE2 || pipe == PIPE_MTE3,
                  "a vector core has no such pipe");
    return pipe == PIPE_S ? S : pipe == PIPE_V ? V : pipe == PIPE_MTE2 ? MTE2 : MTE3;
}

inline void need_scheduler() {
    if (!core().hard_sync) fault("kernel-type", "SyncAll needs KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0)");
    ++core().counters.sync["SyncAll"];
}

}  // namespace emulator

namespace AscendC {

template <HardEvent event>
void SetFlag(int32_t eventID) {
    ++emulator::core().counters.sync["SetFlag"];
    emulator::core().set_flag(static_cast<int>(event), eventID);
}

template <HardEvent event>
void WaitFlag(int32_t eventID) {
    ++emulator::core().counters.sync["WaitFlag"];
    emulator::core().wait_flag(static_cast<int>(event), eventID);
}

template <pipe_t pipe>
void PipeBarrier() {
    static_assert(pipe != PIPE_S, "the scalar pipe keeps its own order; PipeBarrier<PIPE_S> faults on the device");
    ++emulator::core().counters.sync["PipeBarrier"];
    if constexpr (pipe == PIPE_ALL) {
        emulator::core().barrier_all();
    } else {
        emulator::core().barrier(emulator::pipe_of<pipe>());
    }
}

inline int64_t GetBlockIdx() { return emulator::core().index; }
inline int64_t GetBlockNum() { return emulator::block_count(); }

// All cores, by hardware. The scheduler that carries it runs for mixed kernel types only.
template <bool isAIVOnly = true>
void SyncAll() {
    static_assert(isAIVOnly, "a kernel without cube cores hangs in SyncAll<false>");
    emulator::need_scheduler();
    emulator::sync_all();
}

}  // namespace AscendC

// How a kernel gets its tiling data and workspace, and what kind of kernel it is.

namespace emulator {

template <typename Tiling>
Tiling load_tiling(const void* argument) {
    static_assert(std::is_trivially_copyable_v<Tiling>, "tiling data is a plain struct");
    const GmBuffer* buffer = find_gm(argument);
    if (!buffer || buffer->bytes != sizeof(Tiling)) {
        fault("tiling-size", "the kernel expects %zu bytes of tiling data, it was given %lu", sizeof(Tiling),
              buffer ? buffer->bytes : 0);
    }
    core().counters.gm[buffer->name].read_bytes += sizeof(Tiling);
    Tiling tiling;
    std::memcpy(&tiling, argument, sizeof(Tiling));
    return tiling;
}

// Of the kernels without cube cores; only the mixed type starts the scheduler behind SyncAll().
enum KernelType { KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_MIX_AIV_1_0 };

}  // namespace emulator

namespace AscendC {

inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }

}  // namespace AscendC

#define REGISTER_TILING_DEFAULT(STRUCT) using EmulatorTilingDefault = STRUCT
#define GET_TILING_DATA(NAME, ARGUMENT) \
    EmulatorTilingDefault NAME = emulator::load_tiling<EmulatorTilingDefault>(ARGUMENT)
#define KERNEL_TASK_TYPE_DEFAULT(TYPE) emulator::core().hard_sync = emulator::TYPE == emulator::KERNEL_TYPE_MIX_AIV_1_0
