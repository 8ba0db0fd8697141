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

using Words = AscendC::LocalTensor<int32_t>;

inline int32_t* sync_words(const AscendC::GlobalTensor<int32_t>& workspace, uint64_t first, uint64_t count) {
    return reinterpret_cast<int32_t*>(workspace.owner->base + workspace.at(first * 4, count * 4));
}

// IBSet and IBWait: `act` on the flag of (block, event).
inline void block_flag(const char* api, const AscendC::GlobalTensor<int32_t>& workspace, const Words& ub_workspace,
                       int32_t block, int32_t event, void (*act)(int32_t*, const char*)) {
    core().begin(S, api);
    ub_workspace.view.check("ubWorkspace");
    const uint32_t address = ub_workspace.view.at("ubWorkspace", 0, BLOCK);
    core().barrier_all();
    ++core().counters.sync[api];
    act(sync_words(workspace, 8ull * (block_count() * event + block), 8), api);
    core().forget_ub(address, BLOCK);
}

inline void need_scheduler(const char* api) {
    if (!core().hard_sync) fault("kernel-type", "%s needs KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0)", api);
    ++core().counters.sync[api];
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
    emulator::need_scheduler("SyncAll");
    emulator::sync_all(emulator::block_count());
}

// By counters in global memory, 32 bytes a core, zero at the start of the kernel.
template <bool isAIVOnly = true>
void SyncAll(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace,
             const int32_t usedCores = 0) {
    static_assert(isAIVOnly, "the soft SyncAll is for kernels without cube cores");
    using namespace emulator;
    const int members = usedCores ? usedCores : block_count();
    if (members > block_count())
        fault("sync-cores", "SyncAll of %d cores, but the kernel runs on %d", members, block_count());
    core().begin(MTE2, "SyncAll");
    ubWorkspace.view.check("ubWorkspace");
    const uint32_t address = ubWorkspace.view.at("ubWorkspace", 0, BLOCK * members);
    int32_t* word = sync_words(gmWorkspace, 0, 8ull * members) + 8 * GetBlockIdx();
    auto& calls = core().counters.sync["SyncAll soft"];
    if (*word != static_cast<int32_t>(calls)) {
        fault("workspace-not-zero", "SyncAll found %d in its counter, not %lu: was gmWorkspace zero?", *word, calls);
    }
    *word = static_cast<int32_t>(++calls);
    sync_all(members);
    core().write_ub(address, BLOCK * members);
    core().barrier_all();
}

// Core -> core: IBSet writes the flag of (blockIdx, eventID), IBWait with the same pair waits for it and clears it.
template <bool isAIVOnly = true>
void IBSet(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace, int32_t blockIdx,
           int32_t eventID) {
    emulator::block_flag("IBSet", gmWorkspace, ubWorkspace, blockIdx, eventID, emulator::block_set);
}
template <bool isAIVOnly = true>
void IBWait(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace, int32_t blockIdx,
            int32_t eventID) {
    emulator::block_flag("IBWait", gmWorkspace, ubWorkspace, blockIdx, eventID, emulator::block_wait);
}

// Mode 0, all vector cores; the other modes need cube cores.
template <uint8_t modeId, pipe_t pipe>
void CrossCoreSetFlag(uint16_t flagId) {
    static_assert(modeId == 0, "modes 1 and 2 are for kernels with cube cores");
    static_assert(pipe != PIPE_S && pipe != PIPE_ALL, "CrossCoreSetFlag takes neither PIPE_S nor PIPE_ALL");
    emulator::need_scheduler("CrossCoreSetFlag");
    emulator::cross_set(emulator::pipe_of<pipe>(), flagId);
}

template <uint8_t modeId = 0, pipe_t pipe = PIPE_S>
void CrossCoreWaitFlag(uint16_t flagId) {
    static_assert(modeId == 0, "modes 1 and 2 are for kernels with cube cores");
    emulator::need_scheduler("CrossCoreWaitFlag");
    emulator::cross_wait(flagId);
}

// Writes the scalar unit's cached lines of a tensor back to global memory and drops them.
template <typename T, CacheLine entireType, DcciDst dcciDst>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& tensor) {
    using namespace emulator;
    if (!tensor.owner) fault("no-buffer", "DataCacheCleanAndInvalid without SetGlobalBuffer");
    GmBuffer& buffer = *tensor.owner;
    buffer.shadow();
    const uint64_t line = tensor.origin / CACHE_LINE, entries = buffer.kind.size();
    const bool all = entireType == CacheLine::ENTIRE_DATA_CACHE;
    const uint64_t begin = all ? 0 : line * CACHE_LINE / buffer.grain;
    const uint64_t end = all ? entries : std::min(entries, (line + 1) * CACHE_LINE / buffer.grain);
    for (uint64_t i = begin; i < end; ++i) {
        if (buffer.kind[i] == Write::CACHED && buffer.writer[i].thread / PIPES == core().index)
            buffer.kind[i] = Write::PLAIN;
    }
    if (all) core().cached.clear();
    core().cached.erase({&buffer, line});
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

// Of the kernels without cube cores; only the mixed type starts the scheduler behind SyncAll() and cross-core flags.
enum KernelType { KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_MIX_AIV_1_0 };

}  // namespace emulator

namespace AscendC {

inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }

}  // namespace AscendC

#define REGISTER_TILING_DEFAULT(STRUCT) using EmulatorTilingDefault = STRUCT
#define GET_TILING_DATA(NAME, ARGUMENT) \
    EmulatorTilingDefault NAME = emulator::load_tiling<EmulatorTilingDefault>(ARGUMENT)
#define TILING_KEY_IS(KEY) (emulator::tiling_key() == static_cast<uint64_t>(KEY))
#define KERNEL_TASK_TYPE_DEFAULT(TYPE) emulator::core().hard_sync = emulator::TYPE == emulator::KERNEL_TYPE_MIX_AIV_1_0
