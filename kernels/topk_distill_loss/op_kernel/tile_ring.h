// Slots of the unified buffer through which tiles of logits pass, and the events that keep the copies of one slot apart
// from the vector work on it. Loads are used in the order in which they were issued.
#pragma once

#include "vector_ops.h"

namespace topk_distill {

template <typename T>
class TileRing {
  public:
    __aicore__ inline void Init(const LocalTensor<T>& tiles, uint32_t tile, uint32_t slots) {
        tiles_ = tiles;
        tile_ = tile;
        slots_ = slots;
        grouped_ = static_cast<uint32_t>((slots + GROUPS - 1) / GROUPS);
    }

    __aicore__ inline uint32_t Slots() const { return slots_; }
    __aicore__ inline LocalTensor<T> At(uint32_t slot) const { return tiles_[slot * tile_]; }

    // Starts a copy into a slot. `scalar`: the scalar unit will look at it too, and Arrive must say the same.
    __aicore__ inline void Load(uint32_t slot, const GlobalTensor<T>& source, uint32_t count, bool scalar) {
        Occupy(slot);
        CopyIn(At(slot), source, count);
        const int32_t id = static_cast<int32_t>(loaded_++ % LOADS);
        if (scalar) AscendC::SetFlag<HardEvent::MTE2_S>(id);
        AscendC::SetFlag<HardEvent::MTE2_V>(id);
    }

    // Waits for the oldest load that has not arrived yet.
    __aicore__ inline void Arrive(bool scalar) {
        const int32_t id = static_cast<int32_t>(arrived_++ % LOADS);
        if (scalar) AscendC::WaitFlag<HardEvent::MTE2_S>(id);
        AscendC::WaitFlag<HardEvent::MTE2_V>(id);
    }

    // The vector unit will write a slot that nothing was loaded into.
    __aicore__ inline void Occupy(uint32_t slot) {
        const uint32_t group = slot / grouped_;
        const int32_t id = static_cast<int32_t>(group);
        if (left_[group] == Left::BY_VECTOR) AscendC::WaitFlag<HardEvent::V_MTE2>(id);
        if (left_[group] == Left::BY_STORE) AscendC::WaitFlag<HardEvent::MTE3_MTE2>(id);
        if (left_[group] == Left::BY_STORE_TO_VECTOR) AscendC::WaitFlag<HardEvent::MTE3_V>(id);
        left_[group] = Left::NOTHING;
        ++inUse_[group];
    }

    // The vector unit has read a slot for the last time.
    __aicore__ inline void Release(uint32_t slot) {
        const uint32_t group = slot / grouped_;
        if (--inUse_[group] > 0) return;
        AscendC::SetFlag<HardEvent::V_MTE2>(static_cast<int32_t>(group));
        left_[group] = Left::BY_VECTOR;
    }

    // Copies a slot out; after that it is free: for the vector unit, or for the next load.
    __aicore__ inline void Store(uint32_t slot, const GlobalTensor<T>& target, uint32_t count, bool toVector) {
        CopyOut(target, At(slot), count);
        const uint32_t group = slot / grouped_;
        if (--inUse_[group] > 0) return;
        const int32_t id = static_cast<int32_t>(group);
        if (toVector) AscendC::SetFlag<HardEvent::MTE3_V>(id);
        else AscendC::SetFlag<HardEvent::MTE3_MTE2>(id);
        left_[group] = toVector ? Left::BY_STORE_TO_VECTOR : Left::BY_STORE;
    }

    // Waits for every event that is still set, so that none outlives the kernel.
    __aicore__ inline void Drain() {
        for (uint32_t group = 0; group < GROUPS; ++group) {
            if (left_[group] != Left::NOTHING) Occupy(group * grouped_);
        }
    }

  private:
    // Events of slots, ids 0 to 4; neighbouring slots share one when there are more.
    static constexpr uint32_t GROUPS = 5;
    static constexpr uint32_t LOADS = 4;   // loads under way at most, with their events
    enum class Left : uint8_t { NOTHING, BY_VECTOR, BY_STORE, BY_STORE_TO_VECTOR };

    LocalTensor<T> tiles_;
    uint32_t tile_ = 0, slots_ = 0, grouped_ = 1, loaded_ = 0, arrived_ = 0;
    Left left_[GROUPS] = {};        // who used a group's slots last, when all are free
    uint32_t inUse_[GROUPS] = {};  // slots of a group that hold something
};

}  // namespace topk_distill
