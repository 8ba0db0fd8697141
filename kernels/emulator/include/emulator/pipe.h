// TPipe, TQue and TBuf: buffers, and the events that a queue sets and waits for on behalf of its user.
#pragma once

#include "sync.h"

namespace AscendC {

template <TPosition position, int32_t depth, auto mask>
class TQue;
template <TPosition position>
class TBuf;

class TPipe {
  public:
    TPipe() {
        emulator::core().pipe_object = this;
        Reset();
    }
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;
    ~TPipe() {
        if (emulator::core().pipe_object == this) emulator::core().pipe_object = nullptr;
    }
    void Reset() { emulator::core().reset_buffers(); }

    template <TPosition position, int32_t depth, auto mask>
    bool InitBuffer(TQue<position, depth, mask>& queue, uint8_t num, uint32_t len) {
        return queue.init(num, len);
    }
    template <TPosition position>
    bool InitBuffer(TBuf<position>& buffer, uint32_t len) {
        return buffer.init(len);
    }
    template <HardEvent event>
    TEventID AllocEventID() {
        return static_cast<TEventID>(emulator::core().alloc_event(static_cast<int>(event)));
    }
    template <HardEvent event>
    void ReleaseEventID(TEventID id) {
        emulator::core().release_event(static_cast<int>(event), id);
    }
    TEventID FetchEventID(HardEvent event) {
        return static_cast<TEventID>(emulator::core().fetch_event(static_cast<int>(event)));
    }
};

// VECCALC is for TBuf alone.
template <TPosition position, int32_t depth, auto mask = 0>
class TQue {
    static_assert(position == TPosition::VECIN || position == TPosition::VECOUT, "a TQue is VECIN or VECOUT");
    static_assert(depth >= 1, "queues of depth 0 are not emulated");
    static constexpr bool inwards = position == TPosition::VECIN;
    static constexpr int enqueue_event = static_cast<int>(inwards ? HardEvent::MTE2_V : HardEvent::V_MTE3);
    static constexpr int free_event = static_cast<int>(inwards ? HardEvent::V_MTE2 : HardEvent::MTE3_V);
    using State = emulator::BufferState;

  public:
    template <typename T>
    LocalTensor<T> AllocTensor() {
        // The device spins until a buffer is free; here nothing else can free one.
        for (int tried = 0; tried < count; ++tried) {
            const int index = first + cursor;
            cursor = (cursor + 1) % count;
            emulator::Buffer& buffer = emulator::core().buffers[index];
            if (buffer.state != State::FREE) continue;
            if (buffer.free_id >= 0) settle(free_event, buffer.free_id);
            buffer.state = State::ALLOCATED;
            ++buffer.generation;
            emulator::core().forget_ub(buffer.address, buffer.bytes);
            return tensor<T>(index);
        }
        emulator::fault("alloc-without-free", "AllocTensor: all %d buffers of %s are in use", count, name());
    }
    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor) {
        emulator::Buffer& buffer = own(tensor.view, "FreeTensor");
        if (buffer.state == State::FREE || buffer.generation != tensor.view.generation) {
            emulator::fault("double-free", "FreeTensor of a tensor of %s that is free already", buffer.name.c_str());
        }
        if (buffer.state == State::QUEUED) {
            emulator::fault("free-in-queue", "FreeTensor of a tensor of %s that is still queued", buffer.name.c_str());
        }
        buffer.free_event = free_event;
        buffer.free_id = raise(free_event);
        buffer.state = State::FREE;
    }
    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor) {
        emulator::Buffer& buffer = own(tensor.view, "EnQue");
        const bool held = buffer.state == State::ALLOCATED || buffer.state == State::DEQUEUED;
        if (!held || buffer.generation != tensor.view.generation) {
            emulator::fault("enque-not-allocated", "EnQue of a tensor of %s that is not allocated",
                            buffer.name.c_str());
        }
        if (waiting == depth) emulator::fault("queue-full", "EnQue: %s already holds its depth of %d", name(), depth);
        buffer.queue_id = raise(enqueue_event);
        buffer.state = State::QUEUED;
        entries[(head + waiting++) % depth] = tensor.view.buffer;
        return true;
    }
    template <typename T>
    LocalTensor<T> DeQue() {
        if (!waiting) emulator::fault("deque-without-enque", "DeQue of %s, which holds nothing", name());
        const int index = entries[head];
        emulator::Buffer& buffer = emulator::core().buffers[index];
        settle(enqueue_event, buffer.queue_id);
        buffer.state = State::DEQUEUED;
        head = (head + 1) % depth;
        --waiting;
        return tensor<T>(index);
    }

    bool init(uint8_t num, uint32_t len) {
        emulator::Core& core = emulator::core();
        if (num == 0 || len == 0) emulator::fault("init-buffer", "InitBuffer with %d buffers of %u bytes", num, len);
        int& of_pair = core.buffers_of_pair[enqueue_event];
        of_pair += num;
        if (of_pair > emulator::EVENT_IDS) {
            emulator::fault("too-many-buffers", "%d buffers on the queues whose EnQue sets %s; an event has %d ids",
                            of_pair, emulator::EVENTS[enqueue_event].name, emulator::EVENT_IDS);
        }
        count = num;
        cursor = head = waiting = 0;
        first = static_cast<int>(core.buffers.size());
        const std::string base = (inwards ? "VECIN queue " : "VECOUT queue ") + std::to_string(first) + " buffer ";
        for (int i = 0; i < num; ++i) core.add_buffer(len, true, base + std::to_string(i));
        return true;
    }

  private:
    static int raise(int event) {
        const int id = emulator::core().alloc_event(event);
        emulator::core().set_flag(event, id);
        return id;
    }
    static void settle(int event, int& id) {
        emulator::core().wait_flag(event, id);
        emulator::core().release_event(event, id);
        id = -1;
    }
    const char* name() const {
        return count ? emulator::core().buffers[first].name.c_str() : "a queue without InitBuffer";
    }
    template <typename T>
    LocalTensor<T> tensor(int index) const {
        const emulator::Buffer& buffer = emulator::core().buffers[index];
        return {{buffer.address, buffer.bytes, index, buffer.generation}};
    }
    emulator::Buffer& own(const emulator::View& view, const char* api) const {
        if (view.buffer < first || view.buffer >= first + count) {
            emulator::fault("foreign-tensor", "%s of a tensor that %s did not allocate", api, name());
        }
        return emulator::core().buffers[view.buffer];
    }

    int first = 0, count = 0, cursor = 0, head = 0, waiting = 0;
    int entries[depth] = {};
};

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
        return {{buffer.address + bufOffset, static_cast<uint32_t>(size * sizeof(T)), index, 0}};
    }

    bool init(uint32_t len) {
        emulator::Core& core = emulator::core();
        if (len == 0) emulator::fault("init-buffer", "InitBuffer of a TBuf with 0 bytes");
        index = core.add_buffer(len, false, "TBuf " + std::to_string(core.buffers.size()));
        bytes = core.buffers[index].bytes;
        return true;
    }

  private:
    int index = -1;
    uint32_t bytes = 0;
};

}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr() {
    auto* pipe = static_cast<AscendC::TPipe*>(emulator::core().pipe_object);
    if (!pipe) emulator::fault("no-pipe", "GetTPipePtr without a TPipe");
    return pipe;
}
