// Events between pipes, barriers, and synchronisation between cores.
#pragma once

#include <algorithm>

#include "tensor.h"

namespace AscendC {

// source_destination. Events of pipes that a vector core does not have are left out.
enum class HardEvent : uint8_t {
    MTE2_V,
    V_MTE2,
    MTE3_V,
    V_MTE3,
    V_V,
    MTE3_MTE2,
    MTE2_MTE3,
    S_V,
    V_S,
    S_MTE2,
    MTE2_S,
    S_MTE3,
    MTE3_S,
    MAX
};

}  // namespace AscendC

namespace emulator {

struct EventPipes {
    Pipe from, to;
    const char* name;
};
constexpr EventPipes EVENTS[] = {
    {MTE2, V, "MTE2_V"},       {V, MTE2, "V_MTE2"},       {MTE3, V, "MTE3_V"}, {V, MTE3, "V_MTE3"}, {V, V, "V_V"},
    {MTE3, MTE2, "MTE3_MTE2"}, {MTE2, MTE3, "MTE2_MTE3"}, {S, V, "S_V"},       {V, S, "V_S"},       {S, MTE2, "S_MTE2"},
    {MTE2, S, "MTE2_S"},       {S, MTE3, "S_MTE3"},       {MTE3, S, "MTE3_S"},
};
constexpr Pipe source_of(AscendC::HardEvent event) { return EVENTS[static_cast<int>(event)].from; }
constexpr Pipe target_of(AscendC::HardEvent event) { return EVENTS[static_cast<int>(event)].to; }
constexpr const char* event_name(AscendC::HardEvent event) { return EVENTS[static_cast<int>(event)].name; }

template <pipe_t pipe>
constexpr Pipe pipe_of() {
    static_assert(pipe == PIPE_S || pipe == PIPE_V || pipe == PIPE_MTE2 || pipe == PIPE_MTE3,
                  "a vector core has no such pipe");
    return pipe == PIPE_S ? S : pipe == PIPE_V ? V : pipe == PIPE_MTE2 ? MTE2 : MTE3;
}

}  // namespace emulator

namespace AscendC {

template <HardEvent event>
void SetFlag(int32_t eventID) {
    ++emulator::core().counters.sync["SetFlag"];
    emulator::core().set_flag(static_cast<int>(event), emulator::source_of(event), eventID);
}

template <HardEvent event>
void WaitFlag(int32_t eventID) {
    ++emulator::core().counters.sync["WaitFlag"];
    emulator::core().wait_flag(static_cast<int>(event), emulator::target_of(event), eventID);
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

// Waits for the core's own memory accesses; it orders nothing between pipes.
template <MemDsbT>
void DataSyncBarrier() {}

inline int64_t GetBlockIdx() { return emulator::core().index; }
inline int64_t GetBlockNum() { return emulator::block_count(); }
inline int64_t GetSubBlockIdx() { return 0; }  // of a kernel without cube cores
inline int64_t GetSubBlockNum() { return 1; }
inline int64_t GetTaskRatio() { return 1; }

}  // namespace AscendC

namespace emulator {

template <typename T>
int32_t* sync_words(const AscendC::GlobalTensor<T>& workspace, uint64_t word, uint64_t words, const char* api) {
    return reinterpret_cast<int32_t*>(workspace.owner->base + workspace.at(api, word * 4, words * 4));
}

inline void need_ub_words(const AscendC::LocalTensor<int32_t>& workspace, uint64_t words, const char* api) {
    workspace.view.check_alive(api);
    workspace.view.check_aligned(api, "ubWorkspace");
    workspace.view.at(api, "ubWorkspace", 0, words * 4);
}

}  // namespace emulator

namespace AscendC {

// All cores, by hardware. The scheduler that carries it runs for mixed kernel types only.
template <bool isAIVOnly = true>
void SyncAll() {
    static_assert(isAIVOnly, "a kernel without cube cores hangs in SyncAll<false>");
    if (!emulator::core().hard_sync) {
        emulator::fault("kernel-type", "SyncAll() needs KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0)");
    }
    ++emulator::core().counters.sync["SyncAll"];
    emulator::sync_all(emulator::block_count(), "SyncAll");
}

// By counters in global memory, 32 bytes a core, zero at the start of the kernel.
template <bool isAIVOnly = true>
void SyncAll(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace,
             const int32_t usedCores = 0) {
    static_assert(isAIVOnly, "the soft SyncAll is for kernels without cube cores");
    const int members = usedCores ? usedCores : emulator::block_count();
    if (members > emulator::block_count()) {
        emulator::fault("sync-cores", "SyncAll of %d cores, but the kernel runs on %d", members,
                        emulator::block_count());
    }
    emulator::need_ub_words(ubWorkspace, 8ull * members, "SyncAll");
    int32_t* word = emulator::sync_words(gmWorkspace, 0, 8ull * members, "SyncAll") + 8 * GetBlockIdx();
    auto& calls = emulator::core().counters.sync["SyncAll soft"];
    if (*word != static_cast<int32_t>(calls)) {
        emulator::fault("workspace-not-zero", "SyncAll found %d in its counter, not %llu: was gmWorkspace zero?", *word,
                        static_cast<unsigned long long>(calls));
    }
    *word = static_cast<int32_t>(++calls);
    emulator::sync_all(members, "SyncAll");
    emulator::core().begin(emulator::MTE2);
    emulator::core().write_ub(emulator::MTE2, ubWorkspace.view.address, 32 * members, "SyncAll");
    emulator::core().barrier_all();
}

// Core -> core: IBSet writes the flag of (blockIdx, eventID), IBWait with the same pair waits for it and clears it.
template <bool isAIVOnly = true>
void IBSet(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace, int32_t blockIdx,
           int32_t eventID) {
    emulator::need_ub_words(ubWorkspace, 8, "IBSet");
    emulator::core().begin(emulator::S);
    emulator::core().barrier_all();
    ++emulator::core().counters.sync["IBSet"];
    emulator::block_set(emulator::sync_words(gmWorkspace, 8ull * (GetBlockNum() * eventID + blockIdx), 8, "IBSet"),
                        "IBSet");
    emulator::core().forget_ub(ubWorkspace.view.address, 32);
}

template <bool isAIVOnly = true>
void IBWait(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace, int32_t blockIdx,
            int32_t eventID) {
    emulator::need_ub_words(ubWorkspace, 8, "IBWait");
    emulator::core().begin(emulator::S);
    emulator::core().barrier_all();
    ++emulator::core().counters.sync["IBWait"];
    emulator::block_wait(emulator::sync_words(gmWorkspace, 8ull * (GetBlockNum() * eventID + blockIdx), 8, "IBWait"),
                         "IBWait");
    emulator::core().forget_ub(ubWorkspace.view.address, 32);
}

// Mode 0, all vector cores; the other modes need cube cores.
template <uint8_t modeId, pipe_t pipe>
void CrossCoreSetFlag(uint16_t flagId) {
    static_assert(modeId == 0, "modes 1 and 2 are for kernels with cube cores");
    static_assert(pipe != PIPE_S && pipe != PIPE_ALL, "CrossCoreSetFlag takes neither PIPE_S nor PIPE_ALL");
    ++emulator::core().counters.sync["CrossCoreSetFlag"];
    emulator::cross_set(emulator::pipe_of<pipe>(), flagId);
}

template <uint8_t modeId = 0, pipe_t pipe = PIPE_S>
void CrossCoreWaitFlag(uint16_t flagId) {
    static_assert(modeId == 0, "modes 1 and 2 are for kernels with cube cores");
    ++emulator::core().counters.sync["CrossCoreWaitFlag"];
    emulator::cross_wait(flagId);
}

// Writes the scalar unit's cached lines of a tensor back to global memory and drops them.
template <typename T, CacheLine entireType, DcciDst dcciDst>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& tensor) {
    using namespace emulator;
    if (!tensor.owner) fault("no-buffer", "DataCacheCleanAndInvalid without SetGlobalBuffer");
    GmBuffer& buffer = *tensor.owner;
    buffer.shadow();
    const uint64_t line = (tensor.origin / CACHE_LINE) * CACHE_LINE;
    const bool all = entireType == CacheLine::ENTIRE_DATA_CACHE;
    const uint64_t begin = all ? 0 : line / buffer.grain;
    const uint64_t end =
        all ? buffer.kind.size() : std::min<uint64_t>(buffer.kind.size(), (line + CACHE_LINE) / buffer.grain);
    for (uint64_t i = begin; i < end; ++i) {
        if (buffer.kind[i] == 2 && buffer.writer[i].thread / PIPES == core().index) buffer.kind[i] = 0;
    }
    if (all) core().cached.clear();
    core().cached.erase({&buffer, line / CACHE_LINE});
}

}  // namespace AscendC
