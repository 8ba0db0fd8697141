// TPipe, TQue, TQueBind and TBuf: buffers, and the events that a queue sets and waits for on behalf of its user.
#pragma once

#include "sync.h"
#include "tensor.h"

namespace AscendC {

template <TPosition source, TPosition destination, int32_t depth, auto mask>
class TQueBind;
template <TPosition position>
class TBuf;

class TPipe {
  public:
    TPipe() { Init(); }
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;
    ~TPipe() {
        if (emulator::core().pipe_object == this) emulator::core().pipe_object = nullptr;
    }
    void Init() {
        emulator::core().pipe_object = this;
        emulator::core().reset_buffers();
    }
    void Reset() { emulator::core().reset_buffers(); }
    void Destroy() {}

    template <typename Queue>
    bool InitBuffer(Queue& queue, uint8_t num, uint32_t len) {
        static_assert(Queue::is_queue, "InitBuffer(queue, num, len) is for TQue and TQueBind; a TBuf takes a length");
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
    template <HardEvent event>
    TEventID FetchEventID() {
        return FetchEventID(event);
    }
};

template <TPosition source, TPosition destination, int32_t depth, auto mask = 0>
class TQueBind {
    static_assert(depth >= 1, "queues of depth 0 are not emulated");

  public:
    static constexpr bool is_queue = true;
    static constexpr bool inwards = source == TPosition::GM, outwards = destination == TPosition::GM;
    static_assert(inwards || outwards || (source == TPosition::VECIN && destination == TPosition::VECOUT),
                  "only queues between global memory and the unified buffer are emulated");
    static constexpr HardEvent enqueue_event = inwards    ? HardEvent::MTE2_V
                                               : outwards ? HardEvent::V_MTE3
                                                          : HardEvent::MTE2_MTE3;
    static constexpr HardEvent free_event = inwards    ? HardEvent::V_MTE2
                                            : outwards ? HardEvent::MTE3_V
                                                       : HardEvent::MTE3_MTE2;

    template <typename T>
    LocalTensor<T> AllocTensor() {
        emulator::Core& core = emulator::core();
        // The device spins until a buffer is free; here nothing else can free one.
        for (int tried = 0; tried < count; ++tried) {
            const int index = first + cursor;
            cursor = (cursor + 1) % count;
            emulator::Buffer& buffer = core.buffers[index];
            if (buffer.state != emulator::BufferState::FREE) continue;
            if (buffer.free_id >= 0) {
                core.wait_flag(static_cast<int>(free_event), emulator::target_of(free_event), buffer.free_id);
                core.release_event(static_cast<int>(free_event), buffer.free_id);
                buffer.free_id = -1;
            }
            buffer.state = emulator::BufferState::ALLOCATED;
            ++buffer.generation;
            core.forget_ub(buffer.address, buffer.bytes);
            return tensor<T>(index);
        }
        emulator::fault("alloc-without-free", "AllocTensor: all %d buffers of %s are in use", count, name());
    }
    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor) {
        emulator::Core& core = emulator::core();
        emulator::Buffer& buffer = own(tensor, "FreeTensor");
        if (buffer.state == emulator::BufferState::FREE || buffer.generation != tensor.view.generation) {
            emulator::fault("double-free", "FreeTensor of a tensor of %s that is free already", buffer.name.c_str());
        }
        if (buffer.state == emulator::BufferState::QUEUED) {
            emulator::fault("free-in-queue", "FreeTensor of a tensor of %s that is still queued", buffer.name.c_str());
        }
        buffer.free_event = static_cast<int>(free_event);
        buffer.free_id = core.alloc_event(static_cast<int>(free_event));
        core.set_flag(static_cast<int>(free_event), emulator::source_of(free_event), buffer.free_id);
        buffer.state = emulator::BufferState::FREE;
    }
    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor) {
        return enqueue<enqueue_event>(own(tensor, "EnQue"), tensor.view);
    }
    template <TPosition from, TPosition to, typename T>
    bool EnQue(const LocalTensor<T>& tensor) {
        return enqueue<user_event<from, to>()>(own(tensor, "EnQue"), tensor.view);
    }
    template <typename T>
    LocalTensor<T> DeQue() {
        return dequeue<T, enqueue_event>();
    }
    template <TPosition from, TPosition to, typename T>
    LocalTensor<T> DeQue() {
        return dequeue<T, user_event<from, to>()>();
    }
    bool VacantInQue() { return waiting < depth; }
    bool HasTensorInQue() { return waiting > 0; }
    int32_t GetTensorCountInQue() { return waiting; }
    bool HasIdleBuffer() {
        for (int index = first; index < first + count; ++index) {
            if (emulator::core().buffers[index].state == emulator::BufferState::FREE) return true;
        }
        return false;
    }

    bool init(uint8_t num, uint32_t len) {
        emulator::Core& core = emulator::core();
        if (num == 0 || len == 0) emulator::fault("init-buffer", "InitBuffer with %d buffers of %u bytes", num, len);
        int& of_pair = core.buffers_of_pair[static_cast<int>(enqueue_event)];
        of_pair += num;
        if (of_pair > static_cast<int>(emulator::EVENT_IDS)) {
            emulator::fault("too-many-buffers", "%d buffers on the queues whose EnQue sets %s; an event has %u ids",
                            of_pair, emulator::event_name(enqueue_event), emulator::EVENT_IDS);
        }
        count = num;
        cursor = head = waiting = 0;
        static const char* const kind = inwards ? "VECIN" : outwards ? "VECOUT" : "VECIN-VECOUT";
        const std::string base = std::string(kind) + " queue " + std::to_string(core.buffers.size());
        for (int i = 0; i < num; ++i) {
            const int index = core.add_buffer(len, true, base + " buffer " + std::to_string(i));
            if (i == 0) first = index;
        }
        return true;
    }

  private:
    template <TPosition from, TPosition to>
    static constexpr HardEvent user_event() {
        static_assert(from != to || from != TPosition::GM);
        return from == TPosition::GM ? HardEvent::MTE2_V
               : to == TPosition::GM ? HardEvent::V_MTE3
                                     : HardEvent::MTE2_MTE3;
    }
    const char* name() const {
        return count ? emulator::core().buffers[first].name.c_str() : "a queue without InitBuffer";
    }
    template <typename T>
    LocalTensor<T> tensor(int index) const {
        const emulator::Buffer& buffer = emulator::core().buffers[index];
        LocalTensor<T> result;
        result.view = {buffer.address, buffer.bytes, index, buffer.generation};
        return result;
    }
    template <typename T>
    emulator::Buffer& own(const LocalTensor<T>& tensor, const char* api) const {
        if (tensor.view.buffer < first || tensor.view.buffer >= first + count) {
            emulator::fault("foreign-tensor", "%s of a tensor that %s did not allocate", api, name());
        }
        return emulator::core().buffers[tensor.view.buffer];
    }
    template <HardEvent event>
    bool enqueue(emulator::Buffer& buffer, const emulator::View& view) {
        using emulator::BufferState;
        const bool held = buffer.state == BufferState::ALLOCATED || buffer.state == BufferState::DEQUEUED;
        if (!held || buffer.generation != view.generation) {
            emulator::fault("enque-not-allocated", "EnQue of a tensor of %s that is not allocated",
                            buffer.name.c_str());
        }
        if (waiting == depth) {
            emulator::fault("queue-full", "EnQue: %s already holds its depth of %d", name(), depth);
        }
        emulator::Core& core = emulator::core();
        buffer.queue_event = static_cast<int>(event);
        buffer.queue_id = core.alloc_event(static_cast<int>(event));
        core.set_flag(static_cast<int>(event), emulator::source_of(event), buffer.queue_id);
        buffer.state = BufferState::QUEUED;
        entries[(head + waiting++) % depth] = view.buffer;
        return true;
    }
    template <typename T, HardEvent event>
    LocalTensor<T> dequeue() {
        if (!waiting) emulator::fault("deque-without-enque", "DeQue of %s, which holds nothing", name());
        emulator::Core& core = emulator::core();
        const int index = entries[head];
        emulator::Buffer& buffer = core.buffers[index];
        if (buffer.queue_event != static_cast<int>(event)) {
            emulator::fault("queue-event", "DeQue of %s waits for %s, but EnQue set %s", name(),
                            emulator::event_name(event),
                            emulator::event_name(static_cast<HardEvent>(buffer.queue_event)));
        }
        core.wait_flag(static_cast<int>(event), emulator::target_of(event), buffer.queue_id);
        core.release_event(static_cast<int>(event), buffer.queue_id);
        buffer.queue_id = -1;
        buffer.state = emulator::BufferState::DEQUEUED;
        head = (head + 1) % depth;
        --waiting;
        return tensor<T>(index);
    }

    int first = 0, count = 0, cursor = 0, head = 0, waiting = 0;
    int entries[depth] = {};
};

// VECCALC is for TBuf alone.
template <TPosition position, int32_t depth, auto mask = 0>
class TQue : public TQueBind<position == TPosition::VECIN ? TPosition::GM : position,
                             position == TPosition::VECOUT ? TPosition::GM : position, depth, mask> {
    static_assert(position == TPosition::VECIN || position == TPosition::VECOUT, "a TQue is VECIN or VECOUT");
};

template <TPosition position = TPosition::LCM>
class TBuf {
  public:
    static constexpr bool is_queue = false;

    template <typename T>
    LocalTensor<T> Get() {
        return GetWithOffset<T>(bytes / sizeof(T), 0);
    }
    template <typename T>
    LocalTensor<T> Get(uint32_t len) {
        return GetWithOffset<T>(len, 0);
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
        LocalTensor<T> result;
        result.view = {buffer.address + bufOffset, static_cast<uint32_t>(size * sizeof(T)), index, 0};
        return result;
    }

    bool init(uint32_t len) {
        static_assert(position == TPosition::VECIN || position == TPosition::VECOUT || position == TPosition::VECCALC);
        if (len == 0) emulator::fault("init-buffer", "InitBuffer of a TBuf with 0 bytes");
        emulator::Core& core = emulator::core();
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
