// Of CANN's platform query, what op_host asks: an Atlas A2 with 48 vector cores.
#pragma once

#include <cstdint>

namespace platform_ascendc {

enum class CoreMemType { L0_A, L0_B, L0_C, L1, L2, UB, HBM };

class PlatformAscendC {
  public:
    explicit PlatformAscendC(void*) {}
    void GetCoreMemSize(const CoreMemType&, uint64_t& size) const { size = 192 * 1024; }
    uint32_t GetCoreNumAiv() const { return 48; }
    uint32_t GetLibApiWorkSpaceSize() const { return 16 * 1024 * 1024; }
};

}  // namespace platform_ascendc
