// DataCopy and DataCopyPad between global memory and the unified buffer.
#pragma once

#include "sync.h"

namespace AscendC {

// blockLen in bytes; a gap is in bytes on the side of global memory and in blocks of 32 bytes on the other.
struct DataCopyExtParams {
    DataCopyExtParams() = default;
    DataCopyExtParams(uint16_t count, uint32_t length, uint32_t srcGap, uint32_t dstGap, uint32_t reserved)
        : blockCount(count), blockLen(length), srcStride(srcGap), dstStride(dstGap), rsv(reserved) {}
    uint16_t blockCount = 1;
    uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;
};

template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() = default;
    DataCopyPadExtParams(bool pads, uint8_t left, uint8_t right, T value)
        : isPad(pads), leftPadding(left), rightPadding(right), paddingValue(value) {}
    bool isPad = false;
    uint8_t leftPadding = 0, rightPadding = 0;
    T paddingValue = 0;
};

}  // namespace AscendC

namespace emulator {

// Bursts of `length` bytes, and the distances from the start of one to the next.
struct Bursts {
    uint64_t count, length, src_step, dst_step;
};

// Of DataCopy, which takes whole blocks.
template <typename T>
Bursts adjacent(uint32_t count) {
    const uint64_t length = uint64_t{count} * sizeof(T);
    if (length % BLOCK) fault("copy-length", "DataCopy of %lu bytes, not a multiple of 32: use DataCopyPad", length);
    return {1, length, 0, 0};
}

inline void begin_copy(const View& view, Pipe pipe, const char* api, const char* operand) {
    core().begin(pipe, api);
    view.check(operand);
}

template <typename T>
void check_bursts(uint64_t count, uint64_t bytes) {
    if (count > 4095 || bytes > 2097151)
        fault("copy-range", "%s of %lu bursts of %lu bytes: at most 4095, of 2097151", core().api, count, bytes);
    if (bytes % sizeof(T)) fault("copy-length", "%s of %lu bytes cuts an element", core().api, bytes);
}

inline uint64_t whole_blocks(uint64_t bytes) { return (bytes + BLOCK - 1) / BLOCK * BLOCK; }

template <typename T>
void copy_out(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, const Bursts& bursts) {
    Core& c = core();
    for (uint64_t i = 0; i < bursts.count; ++i) {
        const uint32_t from = src.view.read("src", i * bursts.src_step, bursts.length);
        const uint64_t place = dst.at(i * bursts.dst_step, bursts.length);
        c.write_gm(*dst.owner, place, bursts.length);
        std::memcpy(dst.owner->base + place, c.ub + from, bursts.length);
    }
    ++c.counters.gm[dst.owner->name].write_copies;
}

template <typename T>
void copy_in(uint32_t to, const AscendC::GlobalTensor<T>& src, uint64_t begin, uint64_t bytes) {
    const uint64_t place = src.at(begin, bytes);
    core().read_gm(*src.owner, place, bytes);
    core().write_ub(to, bytes);
    std::memcpy(core().ub + to, src.owner->base + place, bytes);
}

}  // namespace emulator

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count) {
    using namespace emulator;
    begin_copy(dst.view, MTE2, "DataCopy", "dst");
    const uint64_t length = adjacent<T>(count).length;
    copy_in(dst.view.at("dst", 0, length), src, 0, length);
    ++core().counters.gm[src.owner->name].read_copies;
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count) {
    using namespace emulator;
    begin_copy(src.view, MTE3, "DataCopy", "src");
    copy_out(dst, src, adjacent<T>(count));
}

// In: each burst starts on a block of 32 bytes; what fills its last block is padding, or undefined without isPad.
template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                 const DataCopyPadExtParams<T>& padParams) {
    using namespace emulator;
    begin_copy(dst.view, MTE2, "DataCopyPad", "dst");
    const uint64_t length = dataCopyParams.blockLen;
    check_bursts<T>(dataCopyParams.blockCount, length);
    const uint64_t left = padParams.leftPadding * sizeof(T), right = padParams.rightPadding * sizeof(T);
    if (!padParams.isPad && left + right) fault("pad-range", "DataCopyPad: padding without isPad");
    if (left > BLOCK || right > BLOCK) fault("pad-range", "DataCopyPad pads by more than 32 bytes");
    const uint64_t slot = whole_blocks(left + length + right);
    for (uint64_t i = 0; i < dataCopyParams.blockCount; ++i) {
        const uint32_t to = dst.view.write("dst", i * (slot + dataCopyParams.dstStride * BLOCK), slot);
        core().forget_ub(to, slot);
        copy_in(to + static_cast<uint32_t>(left), src, i * (length + dataCopyParams.srcStride), length);
        // Padding that was asked for also fills the rest of the block; otherwise that is undefined.
        if (left + right == 0) continue;
        core().write_ub(to, slot);
        T* elements = ub_pointer<T>(to);
        std::fill(elements, elements + left / sizeof(T), padParams.paddingValue);
        std::fill(elements + (left + length) / sizeof(T), elements + slot / sizeof(T), padParams.paddingValue);
    }
    ++core().counters.gm[src.owner->name].read_copies;
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& dataCopyParams) {
    using namespace emulator;
    begin_copy(src.view, MTE3, "DataCopyPad", "src");
    const uint64_t length = dataCopyParams.blockLen;
    check_bursts<T>(dataCopyParams.blockCount, length);
    copy_out(dst, src, {dataCopyParams.blockCount, length, whole_blocks(length) + dataCopyParams.srcStride * BLOCK,
                        length + dataCopyParams.dstStride});
}

}  // namespace AscendC
