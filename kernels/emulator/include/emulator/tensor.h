// LocalTensor and GlobalTensor: views with bounds. All their memory goes through Core.
#pragma once

#include "core.h"
#include "types.h"

namespace emulator {

// Where a local operand lies and how far it reaches; what every vector instruction and copy takes.
struct View {
    uint32_t address = 0, bytes = 0;
    int buffer = -1;
    uint32_t generation = 0;

    void check_alive(const char* api) const {
        if (buffer < 0) fault("no-buffer", "%s uses a LocalTensor that no buffer stands behind", api);
        const Buffer& owner = core().buffers[buffer];
        if (owner.queued_type && (owner.generation != generation || owner.state == BufferState::FREE)) {
            fault("use-after-free", "%s uses a tensor of %s that was freed", api, owner.name.c_str());
        }
    }
    void check_aligned(const char* api, const char* operand, uint32_t alignment = BLOCK) const {
        if (address % alignment) {
            fault("ub-misaligned", "%s: %s starts at UB byte %u in %s, not a multiple of %u", api, operand, address,
                  core().name_of(address), alignment);
        }
    }
    // The bytes [begin, begin + size) of the view, checked against its end.
    uint32_t at(const char* api, const char* operand, uint64_t begin, uint64_t size) const {
        if (begin + size > bytes) {
            fault("ub-overrun", "%s: %s needs bytes %llu to %llu of a tensor of %u bytes in %s", api, operand,
                  static_cast<unsigned long long>(begin), static_cast<unsigned long long>(begin + size), bytes,
                  core().name_of(address));
        }
        return address + static_cast<uint32_t>(begin);
    }
};

template <typename T>
T* ub_pointer(uint32_t address) {
    return reinterpret_cast<T*>(core().ub + address);
}

}  // namespace emulator

namespace AscendC {

template <typename T>
class LocalTensor {
  public:
    using PrimType = T;
    LocalTensor() = default;

    T GetValue(const uint32_t index) const {
        const uint32_t address = scalar("GetValue", index);
        emulator::Core& core = emulator::core();
        core.begin(emulator::S);
        core.read_ub(emulator::S, address, sizeof(T), "GetValue");
        ++core.counters.scalar["UB GetValue"];
        T value;
        std::memcpy(&value, core.ub + address, sizeof(T));
        return value;
    }
    template <typename U>
    void SetValue(const uint32_t index, const U value) const {
        const uint32_t address = scalar("SetValue", index);
        emulator::Core& core = emulator::core();
        core.begin(emulator::S);
        core.write_ub(emulator::S, address, sizeof(T), "SetValue");
        ++core.counters.scalar["UB SetValue"];
        const T stored = static_cast<T>(value);
        std::memcpy(core.ub + address, &stored, sizeof(T));
    }
    LocalTensor operator[](const uint32_t offset) const {
        LocalTensor result = *this;
        const uint64_t skipped = static_cast<uint64_t>(offset) * sizeof(T);
        result.view.address = view.at("operator[]", "offset", skipped, 0);
        result.view.bytes = view.bytes - static_cast<uint32_t>(skipped);
        return result;
    }
    template <typename U>
    LocalTensor<U> ReinterpretCast() const {
        LocalTensor<U> result;
        result.view = view;
        return result;
    }
    uint32_t GetSize() const { return view.bytes / sizeof(T); }
    uint32_t GetLength() const { return view.bytes; }
    void SetSize(const uint32_t size) {
        if (size * sizeof(T) > emulator::core().buffers[view.buffer].bytes) {
            emulator::fault("ub-overrun", "SetSize(%u) is more than the buffer holds", size);
        }
        view.bytes = size * sizeof(T);
    }
    uint64_t GetPhyAddr() const { return view.address; }
    uint64_t GetPhyAddr(const uint32_t offset) const { return view.address + offset * sizeof(T); }

    emulator::View view;  // not part of the API

  private:
    uint32_t scalar(const char* api, uint32_t index) const {
        view.check_alive(api);
        return view.at(api, "index", static_cast<uint64_t>(index) * sizeof(T), sizeof(T));
    }
};

template <typename T>
class GlobalTensor {
  public:
    using PrimType = T;

    // bufferSize is in elements; without it the tensor reaches to the end of its allocation.
    void SetGlobalBuffer(__gm__ T* buffer, uint64_t bufferSize) {
        SetGlobalBuffer(buffer);
        if (bufferSize * sizeof(T) < bytes) bytes = bufferSize * sizeof(T);
    }
    void SetGlobalBuffer(__gm__ T* buffer) {
        owner = emulator::find_gm(buffer);
        if (!owner) emulator::fault("gm-overrun", "SetGlobalBuffer got an address outside every tensor");
        origin = static_cast<uint64_t>(reinterpret_cast<uint8_t*>(buffer) - owner->base);
        bytes = owner->bytes - origin;
        if (origin % sizeof(T))
            emulator::fault("gm-misaligned", "a tensor in %s starts within an element", owner->name.c_str());
    }
    const __gm__ T* GetPhyAddr() const { return reinterpret_cast<const T*>(owner->base + origin); }
    __gm__ T* GetPhyAddr(const uint64_t offset) const {
        return reinterpret_cast<T*>(owner->base + origin + offset * sizeof(T));
    }
    uint64_t GetSize() const { return bytes / sizeof(T); }
    GlobalTensor operator[](const uint64_t offset) const {
        GlobalTensor result = *this;
        result.origin += offset * sizeof(T);
        result.bytes = offset * sizeof(T) > bytes ? 0 : bytes - offset * sizeof(T);
        return result;
    }
    T GetValue(const uint64_t offset) const {
        const uint64_t place = at("GetValue", offset * sizeof(T), sizeof(T));
        emulator::Core& core = emulator::core();
        core.begin(emulator::S);
        core.read_gm(emulator::S, *owner, place, sizeof(T), "GetValue");
        ++core.counters.scalar["GM GetValue"];
        T value;
        std::memcpy(&value, owner->base + place, sizeof(T));
        return value;
    }
    void SetValue(const uint64_t offset, T value) {
        const uint64_t place = at("SetValue", offset * sizeof(T), sizeof(T));
        emulator::Core& core = emulator::core();
        core.begin(emulator::S);
        core.write_gm(emulator::S, *owner, place, sizeof(T), "SetValue", 2);
        ++core.counters.scalar["GM SetValue"];
        std::memcpy(owner->base + place, &value, sizeof(T));
    }

    // Not part of the API: the place of bytes [begin, begin + size) in the owner, checked against this view's end.
    uint64_t at(const char* api, uint64_t begin, uint64_t size) const {
        if (!owner) emulator::fault("no-buffer", "%s uses a GlobalTensor without SetGlobalBuffer", api);
        if (begin + size > bytes) {
            emulator::fault("gm-overrun", "%s touches bytes %llu to %llu of a view of %llu bytes in %s", api,
                            static_cast<unsigned long long>(begin), static_cast<unsigned long long>(begin + size),
                            static_cast<unsigned long long>(bytes), owner->name.c_str());
        }
        return origin + begin;
    }
    emulator::GmBuffer* owner = nullptr;
    uint64_t origin = 0, bytes = 0;
};

}  // namespace AscendC
