// DataCopy and DataCopyPad between global memory and the unified buffer, and DataCopy within it.
#pragma once

#include "sync.h"

namespace AscendC {

// Lengths and gaps of DataCopyParams are in blocks of 32 bytes.
struct DataCopyParams {
    DataCopyParams() {}
    DataCopyParams(const uint16_t count, const uint16_t len, const uint16_t srcStrideIn, const uint16_t dstStrideIn)
        : blockCount(count), blockLen(len), srcStride(srcStrideIn), dstStride(dstStrideIn) {}
    uint16_t blockCount = 1;
    uint16_t blockLen = 0;
    uint16_t srcStride = 0;
    uint16_t dstStride = 0;
};

// With DataCopyPad these are bytes, as in DataCopyExtParams, but of 16 bits.
struct DataCopyPadParams {
    DataCopyPadParams() {}
    DataCopyPadParams(const bool isPadValue, const uint8_t leftPadValue, const uint8_t rightPadValue,
                      const uint64_t padValue)
        : isPad(isPadValue), leftPadding(leftPadValue), rightPadding(rightPadValue), paddingValue(padValue) {}
    bool isPad = false;
    uint8_t leftPadding = 0;
    uint8_t rightPadding = 0;
    uint64_t paddingValue = 0;
};

// blockLen in bytes; a gap is in bytes on the side of global memory and in blocks of 32 bytes on the other.
struct DataCopyExtParams {
    DataCopyExtParams() {}
    DataCopyExtParams(const uint16_t count, const uint32_t len, const uint32_t srcStrideIn, const uint32_t dstStrideIn,
                      const uint32_t rsvIn)
        : blockCount(count), blockLen(len), srcStride(srcStrideIn), dstStride(dstStrideIn), rsv(rsvIn) {}
    uint16_t blockCount = 1;
    uint32_t blockLen = 0;
    uint32_t srcStride = 0;
    uint32_t dstStride = 0;
    uint32_t rsv = 0;
};

template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() {}
    DataCopyPadExtParams(const bool isPadValue, const uint8_t leftPadValue, const uint8_t rightPadValue, T padValue)
        : isPad(isPadValue), leftPadding(leftPadValue), rightPadding(rightPadValue), paddingValue(padValue) {}
    bool isPad = false;
    uint8_t leftPadding = 0;
    uint8_t rightPadding = 0;
    T paddingValue = 0;
};

}  // namespace AscendC

namespace emulator {

// Elementwise combination of an atomic copy out.
template <typename T>
void combine(T* target, const T* source, uint64_t count, Atomic mode) {
    for (uint64_t i = 0; i < count; ++i) {
        if constexpr (std::is_same_v<T, bfloat16_t>) {
            const float a = bfloat16_to_float(target[i].bits), b = bfloat16_to_float(source[i].bits);
            const float r = mode == Atomic::ADD ? a + b : mode == Atomic::MAX ? std::fmax(a, b) : std::fmin(a, b);
            target[i].bits = float_to_bfloat16(r, AscendC::RoundMode::CAST_RINT);
        } else {
            const T a = target[i], b = source[i];
            target[i] = mode == Atomic::ADD ? static_cast<T>(a + b) : (mode == Atomic::MAX) == (a > b) ? a : b;
        }
    }
}

template <typename T>
void copy_out(const AscendC::GlobalTensor<T>& dst, uint64_t gm_begin, uint32_t ub_address, uint64_t bytes,
              const char* api) {
    Core& c = core();
    const uint64_t place = dst.at(api, gm_begin, bytes);
    c.read_ub(MTE3, ub_address, static_cast<uint32_t>(bytes), api);
    const bool atomic = c.atomic != Atomic::NONE;
    if (atomic && c.atomic_type != dtype_code<T>)
        fault("atomic-mode", "%s: SetAtomic was called for another type", api);
    c.write_gm(MTE3, *dst.owner, place, bytes, api, atomic);
    if (atomic) {
        combine(reinterpret_cast<T*>(dst.owner->base + place), ub_pointer<T>(ub_address), bytes / sizeof(T), c.atomic);
    } else {
        std::memcpy(dst.owner->base + place, c.ub + ub_address, bytes);
    }
}

template <typename T>
void copy_in(const AscendC::GlobalTensor<T>& src, uint64_t gm_begin, uint32_t ub_address, uint64_t bytes,
             const char* api) {
    Core& c = core();
    const uint64_t place = src.at(api, gm_begin, bytes);
    c.read_gm(MTE2, *src.owner, place, bytes, api);
    c.write_ub(MTE2, ub_address, static_cast<uint32_t>(bytes), api);
    std::memcpy(c.ub + ub_address, src.owner->base + place, bytes);
}

inline uint64_t whole_blocks(const char* api, uint64_t bytes) {
    if (bytes % BLOCK) {
        fault("copy-length", "%s of %llu bytes, not a multiple of 32: use DataCopyPad", api,
              static_cast<unsigned long long>(bytes));
    }
    return bytes;
}

inline void check_bursts(uint64_t count, uint64_t bytes, const char* api) {
    if (count > 4095 || bytes > 2097151) {
        fault("copy-range", "%s of %llu bursts of %llu bytes: at most 4095, of 2097151", api,
              static_cast<unsigned long long>(count), static_cast<unsigned long long>(bytes));
    }
}

template <typename T>
void set_atomic(Atomic mode) {
    static_assert(one_of<T, float, half, bfloat16_t, int16_t, int32_t, int8_t>);
    core().atomic = mode;
    core().atomic_type = dtype_code<T>;
}

inline void begin_copy(const View& view, Pipe pipe, const char* api, const char* operand) {
    view.check_alive(api);
    view.check_aligned(api, operand);
    core().begin(pipe);
}

}  // namespace emulator

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& repeatParams) {
    using namespace emulator;
    begin_copy(dst.view, MTE2, "DataCopy", "dst");
    check_bursts(repeatParams.blockCount, 0, "DataCopy");
    const uint64_t length = repeatParams.blockLen * BLOCK;
    for (uint64_t i = 0; i < repeatParams.blockCount; ++i) {
        const uint32_t to = dst.view.at("DataCopy", "dst", i * (length + repeatParams.dstStride * BLOCK), length);
        copy_in(src, i * (length + repeatParams.srcStride * BLOCK), to, length, "DataCopy");
    }
    ++core().counters.gm[src.owner->name].read_copies;
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& repeatParams) {
    using namespace emulator;
    begin_copy(src.view, MTE3, "DataCopy", "src");
    check_bursts(repeatParams.blockCount, 0, "DataCopy");
    const uint64_t length = repeatParams.blockLen * BLOCK;
    for (uint64_t i = 0; i < repeatParams.blockCount; ++i) {
        const uint32_t from = src.view.at("DataCopy", "src", i * (length + repeatParams.srcStride * BLOCK), length);
        copy_out(dst, i * (length + repeatParams.dstStride * BLOCK), from, length, "DataCopy");
    }
    ++core().counters.gm[dst.owner->name].write_copies;
}

// Within the unified buffer: an instruction of the vector pipe.
template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& repeatParams) {
    using namespace emulator;
    src.view.check_alive("DataCopy");
    src.view.check_aligned("DataCopy", "src");
    begin_copy(dst.view, V, "DataCopy", "dst");
    check_bursts(repeatParams.blockCount, 0, "DataCopy");
    const uint64_t length = repeatParams.blockLen * BLOCK;
    for (uint64_t i = 0; i < repeatParams.blockCount; ++i) {
        const uint32_t from = src.view.at("DataCopy", "src", i * (length + repeatParams.srcStride * BLOCK), length);
        const uint32_t to = dst.view.at("DataCopy", "dst", i * (length + repeatParams.dstStride * BLOCK), length);
        core().read_ub(V, from, static_cast<uint32_t>(length), "DataCopy");
        core().write_ub(V, to, static_cast<uint32_t>(length), "DataCopy");
        std::memmove(core().ub + to, core().ub + from, length);
    }
    ++core().counters.ub_copies;
    core().count_repeats("DataCopy in UB", (repeatParams.blockCount * length + REPEAT_BYTES - 1) / REPEAT_BYTES);
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const uint32_t count) {
    using namespace emulator;
    begin_copy(dst.view, MTE2, "DataCopy", "dst");
    const uint64_t length = whole_blocks("DataCopy", static_cast<uint64_t>(count) * sizeof(T));
    copy_in(src, 0, dst.view.at("DataCopy", "dst", 0, length), length, "DataCopy");
    ++core().counters.gm[src.owner->name].read_copies;
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count) {
    using namespace emulator;
    begin_copy(src.view, MTE3, "DataCopy", "src");
    const uint64_t length = whole_blocks("DataCopy", static_cast<uint64_t>(count) * sizeof(T));
    copy_out(dst, 0, src.view.at("DataCopy", "src", 0, length), length, "DataCopy");
    ++core().counters.gm[dst.owner->name].write_copies;
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint32_t count) {
    const uint64_t length = emulator::whole_blocks("DataCopy", static_cast<uint64_t>(count) * sizeof(T));
    DataCopy(dst, src, DataCopyParams(1, static_cast<uint16_t>(length / emulator::BLOCK), 0, 0));
}

// In: each burst starts on a block of 32 bytes; what fills its last block is padding, or undefined without isPad.
template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                 const DataCopyPadExtParams<T>& padParams) {
    using namespace emulator;
    const char* api = "DataCopyPad";
    begin_copy(dst.view, MTE2, api, "dst");
    check_bursts(dataCopyParams.blockCount, dataCopyParams.blockLen, api);
    const uint64_t length = dataCopyParams.blockLen;
    const uint64_t left = padParams.isPad ? padParams.leftPadding * sizeof(T) : 0;
    const uint64_t right = padParams.isPad ? padParams.rightPadding * sizeof(T) : 0;
    if (!padParams.isPad && (padParams.leftPadding || padParams.rightPadding))
        fault("pad-range", "%s: padding without isPad", api);
    if (left > BLOCK || right > BLOCK) fault("pad-range", "%s pads by more than 32 bytes", api);
    if (length % sizeof(T))
        fault("copy-length", "%s of %llu bytes cuts an element", api, static_cast<unsigned long long>(length));
    const uint64_t filled = left + length + right, slot = (filled + BLOCK - 1) / BLOCK * BLOCK;
    for (uint64_t i = 0; i < dataCopyParams.blockCount; ++i) {
        const uint32_t to = dst.view.at(api, "dst", i * (slot + dataCopyParams.dstStride * BLOCK), slot);
        core().write_ub(MTE2, to, static_cast<uint32_t>(slot), api);
        core().forget_ub(to, static_cast<uint32_t>(slot));
        copy_in(src, i * (length + dataCopyParams.srcStride), to + static_cast<uint32_t>(left), length, api);
        // Padding that was asked for also fills the rest of the block; otherwise that is undefined.
        if (left + right == 0) continue;
        core().write_ub(MTE2, to, static_cast<uint32_t>(slot), api);
        T* elements = ub_pointer<T>(to);
        const uint64_t first = left / sizeof(T), last = first + length / sizeof(T);
        for (uint64_t j = 0; j < slot / sizeof(T); ++j) {
            if (j < first || j >= last) elements[j] = padParams.paddingValue;
        }
    }
    ++core().counters.gm[src.owner->name].read_copies;
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& dataCopyParams) {
    using namespace emulator;
    const char* api = "DataCopyPad";
    begin_copy(src.view, MTE3, api, "src");
    check_bursts(dataCopyParams.blockCount, dataCopyParams.blockLen, api);
    const uint64_t length = dataCopyParams.blockLen, slot = (length + BLOCK - 1) / BLOCK * BLOCK;
    if (length % sizeof(T))
        fault("copy-length", "%s of %llu bytes cuts an element", api, static_cast<unsigned long long>(length));
    for (uint64_t i = 0; i < dataCopyParams.blockCount; ++i) {
        const uint32_t from = src.view.at(api, "src", i * (slot + dataCopyParams.srcStride * BLOCK), length);
        copy_out(dst, i * (length + dataCopyParams.dstStride), from, length, api);
    }
    ++core().counters.gm[dst.owner->name].write_copies;
}

// The older forms, with 16-bit lengths.
template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& dataCopyParams,
                 const DataCopyPadParams& padParams) {
    T value;
    std::memcpy(&value, &padParams.paddingValue, sizeof(T));
    DataCopyPad(dst, src,
                DataCopyExtParams(dataCopyParams.blockCount, dataCopyParams.blockLen, dataCopyParams.srcStride,
                                  dataCopyParams.dstStride, 0),
                DataCopyPadExtParams<T>(padParams.isPad, padParams.leftPadding, padParams.rightPadding, value));
}
template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& dataCopyParams) {
    DataCopyPad(dst, src,
                DataCopyExtParams(dataCopyParams.blockCount, dataCopyParams.blockLen, dataCopyParams.srcStride,
                                  dataCopyParams.dstStride, 0));
}

template <typename T>
void SetAtomicAdd() {
    emulator::set_atomic<T>(emulator::Atomic::ADD);
}
template <typename T>
void SetAtomicMax() {
    emulator::set_atomic<T>(emulator::Atomic::MAX);
}
template <typename T>
void SetAtomicMin() {
    emulator::set_atomic<T>(emulator::Atomic::MIN);
}
inline void SetAtomicNone() { emulator::core().atomic = emulator::Atomic::NONE; }

}  // namespace AscendC
