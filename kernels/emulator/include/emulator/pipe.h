// TPipe and TBuf: the buffers of a kernel in the unified buffer.
#pragma once

#include "sync.h"

namespace AscendC {

template <TPosition position>
class TBuf {
    static_assert(position != TPosition::GM, "a TBuf is VECIN, VECOUT or VECCALC");

  public:
    template <typename T>
    LocalTensor<T> Get() {
        return GetWithOffset<T>(bytes / sizeof(T), 0);
    }
    // `size` in elements, `bufOffset` in bytes.
    template <typename T>
    LocalTensor<T> GetWithOffset(uint32_t size, uint32_t bufOffset) {
        if (index < 0) emulator::fault("no-buffer", "TBuf without InitBuffer");
        const emulator::Buffer& buffer = emulator::core().buffers[index];
        if (static_cast<uint64_t>(bufOffset) + static_cast<uint64_t>(size) * sizeof(T) > bytes) {
            emulator::fault("ub-overrun", "TBuf::Get of %u elements of %zu bytes at %u: %s has %u bytes", size,
                            sizeof(T), bufOffset, buffer.name.c_str(), bytes);
        }
        return {{buffer.address + bufOffset, static_cast<uint32_t>(size * sizeof(T)), index}};
    }

    bool init(uint32_t len) {  // not part of the API
        if (len == 0) emulator::fault("init-buffer", "InitBuffer of a TBuf with 0 bytes");
        index = emulator::core().add_buffer(len);
        bytes = emulator::core().buffers[index].bytes;
        return true;
    }

  private:
    int index = -1;
    uint32_t bytes = 0;
};

class TPipe {
  public:
    TPipe() = default;
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;

    template <TPosition position>
    bool InitBuffer(TBuf<position>& buffer, uint32_t len) {
        return buffer.init(len);
    }
};

}  // namespace AscendC
