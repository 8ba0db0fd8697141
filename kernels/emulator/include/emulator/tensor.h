// LocalTensor and GlobalTensor: views with bounds. All their memory goes through Core.
#pragma once

#include <algorithm>

#include "core.h"
#include "types.h"

namespace emulator {

// Where a local operand lies and how far it reaches; what every vector instruction and copy takes.
struct View {
    uint32_t address = 0, bytes = 0;
    int buffer = -1;

    void check_buffer() const {
        if (buffer < 0) fault("no-buffer", "%s uses a LocalTensor that no buffer stands behind", core().api);
    }
    // Whether an instruction may take this as its operand.
    void check(const char* operand, uint32_t alignment = BLOCK) const {
        check_buffer();
        if (address % alignment) {
            fault("ub-misaligned", "%s: %s starts at UB byte %u in %s, not a multiple of %u", core().api, operand,
                  address, core().name_of(address), alignment);
        }
    }
    // The address of the view's bytes [begin, begin + size).
    uint32_t at(const char* operand, uint64_t begin, uint64_t size) const {
        if (begin + size > bytes) {
            fault("ub-overrun", "%s: %s needs bytes %lu to %lu of a tensor of %u bytes in %s", core().api, operand,
                  begin, begin + size, bytes, core().name_of(address));
        }
        return address + static_cast<uint32_t>(begin);
    }
    // The same, read or written by the instruction that runs.
    uint32_t read(const char* operand, uint64_t begin, uint64_t size) const {
        const uint32_t place = at(operand, begin, size);
        core().read_ub(place, size);
        return place;
    }
    uint32_t write(const char* operand, uint64_t begin, uint64_t size) const {
        const uint32_t place = at(operand, begin, size);
        core().write_ub(place, size);
        return place;
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

    T GetValue(const uint32_t index) const {
        scalar("GetValue", "UB GetValue");
        const uint32_t place = view.read("index", sizeof(T) * uint64_t{index}, sizeof(T));
        T value;
        std::memcpy(&value, emulator::core().ub + place, sizeof(T));
        return value;
    }
    template <typename U>
    void SetValue(const uint32_t index, const U value) const {
        scalar("SetValue", "UB SetValue");
        const uint32_t place = view.write("index", sizeof(T) * uint64_t{index}, sizeof(T));
        const T stored = static_cast<T>(value);
        std::memcpy(emulator::core().ub + place, &stored, sizeof(T));
    }
    LocalTensor operator[](const uint32_t offset) const {
        LocalTensor result = *this;
        const uint64_t skipped = static_cast<uint64_t>(offset) * sizeof(T);
        emulator::core().api = "operator[]";
        result.view.address = view.at("offset", skipped, 0);
        result.view.bytes = view.bytes - static_cast<uint32_t>(skipped);
        return result;
    }
    template <typename U>
    LocalTensor<U> ReinterpretCast() const {
        return {view};
    }

    emulator::View view;  // not part of the API

  private:
    void scalar(const char* api, const char* counter) const {
        emulator::core().begin(emulator::S, api);
        view.check_buffer();
        ++emulator::core().counters.scalar[counter];
    }
};

template <typename T>
class GlobalTensor {
  public:
    // bufferSize is in elements; without it the tensor reaches to the end of its allocation.
    void SetGlobalBuffer(__gm__ T* buffer, uint64_t bufferSize = ~0ull / sizeof(T)) {
        owner = emulator::find_gm(buffer);
        if (!owner) emulator::fault("gm-overrun", "SetGlobalBuffer got an address outside every tensor");
        origin = static_cast<uint64_t>(reinterpret_cast<uint8_t*>(buffer) - owner->base);
        bytes = std::min(owner->bytes - origin, bufferSize * sizeof(T));
        if (origin % sizeof(T))
            emulator::fault("gm-misaligned", "a tensor in %s starts within an element", owner->name.c_str());
    }
    __gm__ T* GetPhyAddr(const uint64_t offset = 0) const {
        return reinterpret_cast<T*>(owner->base + origin + offset * sizeof(T));
    }
    GlobalTensor operator[](const uint64_t offset) const {
        GlobalTensor result = *this;
        result.origin += offset * sizeof(T);
        result.bytes = offset * sizeof(T) > bytes ? 0 : bytes - offset * sizeof(T);
        return result;
    }
    // Not part of the API: the place of bytes [begin, begin + size) in the owner, checked against this view's end.
    uint64_t at(uint64_t begin, uint64_t size) const {
        const char* api = emulator::core().api;
        if (!owner) emulator::fault("no-buffer", "%s uses a GlobalTensor without SetGlobalBuffer", api);
        if (begin + size > bytes) {
            emulator::fault("gm-overrun", "%s touches bytes %lu to %lu of a view of %lu bytes in %s", api, begin,
                            begin + size, bytes, owner->name.c_str());
        }
        return origin + begin;
    }
    emulator::GmBuffer* owner = nullptr;
    uint64_t origin = 0, bytes = 0;
};

}  // namespace AscendC
