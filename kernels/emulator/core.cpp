// The bodies of Core: where every rule on memory, order, events and buffers is enforced.
#include <dlfcn.h>
#include <execinfo.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "run.h"

namespace emulator {

namespace {

void maximum(Clock& target, const Clock& other) {
    for (size_t i = 0; i < target.size(); ++i) target[i] = std::max(target[i], other[i]);
}

std::string range_of(uint64_t begin, uint64_t end) { return std::to_string(begin) + " to " + std::to_string(end); }

}  // namespace

void fault(const char* rule, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    void* frames[32];
    const int depth = backtrace(frames, 32);
    run->trace.clear();
    for (int i = 0; i < depth; ++i) {
        Dl_info info;
        if (dladdr(frames[i], &info) && info.dli_fbase) {
            // Minus one: a return address may already belong to the next line.
            run->trace.push_back(
                static_cast<uint64_t>(static_cast<char*>(frames[i]) - static_cast<char*>(info.dli_fbase)) - 1);
        }
    }
    const std::string where = current ? "core " + std::to_string(current->index) + ": " : "";
    throw Fault{std::string(rule) + ": " + where + text};
}

Core::Core(int core_index, int core_count, uint32_t bytes) : index(core_index), cores(core_count), ub_bytes(bytes) {
    storage.assign(bytes + 64, 0xA5);
    ub = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
    const uint32_t blocks = bytes / BLOCK;
    shadow.written.assign(bytes, 0);
    shadow.writer.assign(blocks, 0);
    shadow.write_time.assign(blocks, 0);
    shadow.write_api.assign(blocks, "");
    shadow.read_api.assign(blocks, "");
    for (int pipe = 0; pipe < PIPES; ++pipe) {
        shadow.read_time[pipe].assign(blocks, 0);
        known[pipe].assign(static_cast<size_t>(core_count) * PIPES, 0);
    }
}

bool Core::ordered(Pipe pipe, Pipe other, uint32_t when) const {
    if (other == pipe && (pipe == S || when == time[pipe])) return true;
    return known[pipe][index * PIPES + other] >= when;
}

bool Core::ordered_thread(Pipe pipe, const GmAccess& access) const {
    if (access.thread / PIPES == index) return ordered(pipe, static_cast<Pipe>(access.thread % PIPES), access.time);
    return known[pipe][access.thread] >= access.time;
}

void Core::hazard(Pipe pipe, Pipe other, const char* api, const char* other_api, bool writes, bool wrote,
                  const std::string& where) {
    const char* now = writes ? "overwrites" : "reads";
    const char* before = wrote ? "wrote" : "reads";
    if (pipe == other) {
        fault("missing-barrier", "%s (%s) %s %s, which %s on the same pipe %s: PipeBarrier<PIPE_%s> is missing", api,
              PIPE_NAMES[pipe], now, where.c_str(), other_api, before, PIPE_NAMES[pipe]);
    }
    fault("missing-sync", "%s (%s) %s %s, which %s (%s) %s: no %s_%s event lies between", api, PIPE_NAMES[pipe], now,
          where.c_str(), other_api, PIPE_NAMES[other], before, PIPE_NAMES[other], PIPE_NAMES[pipe]);
}

void Core::read_ub(Pipe pipe, uint32_t address, uint32_t bytes, const char* api) {
    if (!bytes) return;
    if (const void* hole = memchr(shadow.written.data() + address, 0, bytes)) {
        const auto at = static_cast<uint32_t>(static_cast<const uint8_t*>(hole) - shadow.written.data());
        fault("uninitialised", "%s reads UB byte %u, offset %u of its operand in %s, that nothing has written", api, at,
              at - address, name_of(address));
    }
    const uint32_t first = address / BLOCK, last = (address + bytes - 1) / BLOCK;
    for (uint32_t block = first; block <= last; ++block) {
        const uint32_t when = shadow.write_time[block];
        const Pipe other = static_cast<Pipe>(shadow.writer[block]);
        if (when && !ordered(pipe, other, when)) {
            hazard(pipe, other, api, shadow.write_api[block], false, true,
                   "UB bytes " + range_of(block * BLOCK, (block + 1) * BLOCK) + " of " + name_of(address));
        }
        shadow.read_time[pipe][block] = time[pipe];
        shadow.read_api[block] = api;
    }
}

void Core::write_ub(Pipe pipe, uint32_t address, uint32_t bytes, const char* api) {
    if (!bytes) return;
    const uint32_t first = address / BLOCK, last = (address + bytes - 1) / BLOCK;
    for (uint32_t block = first; block <= last; ++block) {
        const uint32_t when = shadow.write_time[block];
        Pipe other = static_cast<Pipe>(shadow.writer[block]);
        bool wrote = when && !ordered(pipe, other, when);
        // A pipe starts its instructions in order, so that an earlier read of its own is never overtaken.
        for (int reader = 0; !wrote && reader < PIPES; ++reader) {
            const uint32_t read = shadow.read_time[reader][block];
            if (reader == pipe || !read || ordered(pipe, static_cast<Pipe>(reader), read)) continue;
            hazard(pipe, static_cast<Pipe>(reader), api, shadow.read_api[block], true, false,
                   "UB bytes " + range_of(block * BLOCK, (block + 1) * BLOCK) + " of " + name_of(address));
        }
        if (wrote) {
            hazard(pipe, other, api, shadow.write_api[block], true, true,
                   "UB bytes " + range_of(block * BLOCK, (block + 1) * BLOCK) + " of " + name_of(address));
        }
        shadow.write_time[block] = time[pipe];
        shadow.writer[block] = pipe;
        shadow.write_api[block] = api;
    }
    memset(shadow.written.data() + address, 1, bytes);
}

void Core::forget_ub(uint32_t address, uint32_t bytes) {
    memset(shadow.written.data() + address, 0, bytes);
    memset(ub + address, 0xA5, bytes);
}

void GmBuffer::shadow() {
    if (!writer.empty()) return;
    const uint64_t entries = (bytes + grain - 1) / grain;
    writer.resize(entries);
    reader.resize(entries);
    earlier_reader.resize(entries);
    kind.assign(entries, 0);
    copied.assign(bytes / CACHE_LINE + 1, 0);
}

namespace {

[[noreturn]] void gm_conflict(const Core& core, Pipe pipe, const GmBuffer& buffer, const GmAccess& other,
                              uint64_t offset, const char* api, const char* now, const char* before) {
    const int other_core = other.thread / PIPES;
    const char* other_pipe = PIPE_NAMES[other.thread % PIPES];
    if (other_core != core.index) {
        fault("gm-race", "%s (%s) %s byte %llu of %s, which core %d (%s) %s without synchronisation between", api,
              PIPE_NAMES[pipe], now, static_cast<unsigned long long>(offset), buffer.name.c_str(), other_core,
              other_pipe, before);
    }
    const bool same = other.thread % PIPES == pipe;
    fault(same ? "missing-barrier" : "missing-sync", "%s (%s) %s byte %llu of %s, which %s %s: no %s between", api,
          PIPE_NAMES[pipe], now, static_cast<unsigned long long>(offset), buffer.name.c_str(), other_pipe, before,
          same ? "PipeBarrier of that pipe" : (std::string(other_pipe) + "_" + PIPE_NAMES[pipe] + " event").c_str());
}

}  // namespace

void Core::read_gm(Pipe pipe, GmBuffer& buffer, uint64_t offset, uint64_t bytes, const char* api) {
    if (!bytes) return;
    buffer.shadow();
    const GmAccess me{static_cast<uint16_t>(index * PIPES + pipe), time[pipe]};
    const uint64_t first = offset / buffer.grain, last = (offset + bytes - 1) / buffer.grain;
    for (uint64_t i = first; i <= last; ++i) {
        const GmAccess writer = buffer.writer[i];
        if (writer.time) {
            if (!ordered_thread(pipe, writer)) {
                gm_conflict(*this, pipe, buffer, writer, i * buffer.grain, api, "reads", "wrote");
            }
            if (buffer.kind[i] == 2 && writer.thread != me.thread) {
                fault("data-cache",
                      "%s reads byte %llu of %s, which SetValue left in the data cache of core %d: "
                      "DataCacheCleanAndInvalid is missing",
                      api, static_cast<unsigned long long>(i * buffer.grain), buffer.name.c_str(),
                      writer.thread / PIPES);
            }
        }
        if (buffer.reader[i].thread != me.thread) buffer.earlier_reader[i] = buffer.reader[i];
        buffer.reader[i] = me;
    }
    if (pipe == S) {
        const uint64_t line = offset / CACHE_LINE;
        const auto held = cached.emplace(std::pair(&buffer, line), run->copies).first;
        if (held->second < buffer.copied[line]) {
            fault("data-cache",
                  "%s reads byte %llu of %s from a cache line that is older than a copy into it: "
                  "DataCacheCleanAndInvalid is missing",
                  api, static_cast<unsigned long long>(offset), buffer.name.c_str());
        }
    }
    Traffic& traffic = counters.gm[buffer.name];
    traffic.read_bytes += bytes;
}

void Core::write_gm(Pipe pipe, GmBuffer& buffer, uint64_t offset, uint64_t bytes, const char* api, uint8_t kind) {
    if (!bytes) return;
    buffer.shadow();
    const GmAccess me{static_cast<uint16_t>(index * PIPES + pipe), time[pipe]};
    const uint64_t first = offset / buffer.grain, last = (offset + bytes - 1) / buffer.grain;
    for (uint64_t i = first; i <= last; ++i) {
        const GmAccess writer = buffer.writer[i];
        const bool both_atomic = kind == 1 && buffer.kind[i] == 1;
        if (writer.time && !both_atomic && !ordered_thread(pipe, writer)) {
            gm_conflict(*this, pipe, buffer, writer, i * buffer.grain, api, "overwrites", "wrote");
        }
        for (const GmAccess& reader : {buffer.reader[i], buffer.earlier_reader[i]}) {
            if (reader.time && reader.thread != me.thread && !ordered_thread(pipe, reader)) {
                gm_conflict(*this, pipe, buffer, reader, i * buffer.grain, api, "overwrites", "reads");
            }
        }
        buffer.writer[i] = me;
        buffer.kind[i] = kind;
    }
    if (pipe == MTE3) {
        ++run->copies;
        for (uint64_t line = offset / CACHE_LINE; line <= (offset + bytes - 1) / CACHE_LINE; ++line)
            buffer.copied[line] = run->copies;
    }
    if (kind == 2) {  // a whole cache line goes back to memory later: nobody else may write within it
        const uint64_t line = offset / CACHE_LINE * CACHE_LINE / buffer.grain;
        const uint64_t end = std::min<uint64_t>(buffer.writer.size(), line + CACHE_LINE / buffer.grain);
        for (uint64_t i = line; i < end; ++i) {
            if (buffer.writer[i].time && !ordered_thread(pipe, buffer.writer[i])) {
                gm_conflict(*this, pipe, buffer, buffer.writer[i], i * buffer.grain, api, "writes the cache line of",
                            "wrote");
            }
        }
    }
    Traffic& traffic = counters.gm[buffer.name];
    traffic.written_bytes += bytes;
}

void Core::set_flag(int event, Pipe from, int id) {
    const char* name = EVENTS[event].name;
    if (id < 0 || id >= static_cast<int>(EVENT_IDS)) fault("event-id", "SetFlag<%s>(%d): ids are 0 to 7", name, id);
    Flag& flag = flags[event * EVENT_IDS + id];
    if (flag.pending) fault("event-reused", "SetFlag<%s>(%d) while the flag is still set", name, id);
    flag.pending = true;
    snapshot(from, flag.clock);
}

void Core::wait_flag(int event, Pipe to, int id) {
    const char* name = EVENTS[event].name;
    if (id < 0 || id >= static_cast<int>(EVENT_IDS)) fault("event-id", "WaitFlag<%s>(%d): ids are 0 to 7", name, id);
    Flag& flag = flags[event * EVENT_IDS + id];
    if (!flag.pending) fault("wait-without-set", "WaitFlag<%s>(%d) without SetFlag: the core hangs", name, id);
    flag.pending = false;
    learn(to, flag.clock);
}

void Core::snapshot(Pipe pipe, Clock& clock) const {
    clock = known[pipe];
    clock[index * PIPES + pipe] = time[pipe];
}

void Core::learn(Pipe pipe, const Clock& clock) { maximum(known[pipe], clock); }

void Core::merge_into(Clock& clock) const {
    if (clock.empty()) clock.assign(known[0].size(), 0);
    for (int pipe = 0; pipe < PIPES; ++pipe) {
        maximum(clock, known[pipe]);
        clock[index * PIPES + pipe] = std::max(clock[index * PIPES + pipe], time[pipe]);
    }
}

void Core::learn_all(const Clock& clock) {
    for (int pipe = 0; pipe < PIPES; ++pipe) learn(static_cast<Pipe>(pipe), clock);
}

void Core::barrier(Pipe pipe) { known[pipe][index * PIPES + pipe] = time[pipe]; }

void Core::barrier_all() {
    Clock all;
    merge_into(all);
    learn_all(all);
}

int Core::fetch_event(int event) const {
    const auto found = occupied_events.find(event);
    const uint8_t occupied = found == occupied_events.end() ? 0 : found->second;
    for (int id = 0; id < static_cast<int>(EVENT_IDS); ++id) {
        if (!(occupied >> id & 1)) return id;
    }
    fault("event-ids", "all 8 ids of %s are allocated", EVENTS[event].name);
}

int Core::alloc_event(int event) {
    const int id = fetch_event(event);
    occupied_events[event] |= static_cast<uint8_t>(1 << id);
    return id;
}

void Core::release_event(int event, int id) {
    if (id < 0 || id >= static_cast<int>(EVENT_IDS) || !(occupied_events[event] >> id & 1)) {
        fault("event-id", "ReleaseEventID<%s>(%d) of an id that is not allocated", EVENTS[event].name, id);
    }
    occupied_events[event] &= static_cast<uint8_t>(~(1 << id));
}

int Core::add_buffer(uint32_t bytes, bool queued, const std::string& name) {
    Buffer buffer;
    buffer.bytes = (bytes + BLOCK - 1) / BLOCK * BLOCK;
    buffer.address = ub_used;
    buffer.queued_type = queued;
    buffer.name = name;
    if (static_cast<uint64_t>(ub_used) + buffer.bytes > ub_bytes - RESERVED_UB) {
        fault("ub-overflow", "InitBuffer of %u bytes for %s: %u of %u bytes are taken (the last %u KB stay free)",
              bytes, name.c_str(), ub_used, ub_bytes - RESERVED_UB, RESERVED_UB / 1024);
    }
    ub_used += buffer.bytes;
    counters.ub_high_water = std::max<uint64_t>(counters.ub_high_water, ub_used);
    buffers.push_back(buffer);
    return static_cast<int>(buffers.size()) - 1;
}

void Core::reset_buffers() {
    for (Buffer& buffer : buffers) {
        if (!buffer.queued_type) continue;
        if (buffer.state != BufferState::FREE)
            fault("missing-free", "TPipe::Reset while a tensor of %s is in use", buffer.name.c_str());
        if (buffer.free_id < 0) continue;
        wait_flag(buffer.free_event, EVENTS[buffer.free_event].to, buffer.free_id);
        release_event(buffer.free_event, buffer.free_id);
    }
    buffers.clear();
    buffers_of_pair.clear();
    ub_used = 0;
}

const char* Core::name_of(uint32_t address) const {
    for (const Buffer& buffer : buffers) {
        if (address >= buffer.address && address < buffer.address + buffer.bytes) return buffer.name.c_str();
    }
    return "no buffer";
}

void Core::finish() {
    std::map<int, bool> of_queues;
    for (const Buffer& buffer : buffers) {
        if (!buffer.queued_type) continue;
        if (buffer.state == BufferState::QUEUED) {
            fault("enque-without-deque", "the kernel ends while a tensor waits in %s", buffer.name.c_str());
        }
        if (buffer.state != BufferState::FREE) {
            fault("missing-free", "the kernel ends without FreeTensor of a tensor of %s", buffer.name.c_str());
        }
        if (buffer.free_id >= 0) of_queues[buffer.free_event * EVENT_IDS + buffer.free_id] = true;
    }
    for (const auto& [key, flag] : flags) {
        if (flag.pending && !of_queues.count(key)) {
            fault("flag-never-waited", "SetFlag<%s>(%d) was never waited for", EVENTS[key / EVENT_IDS].name,
                  key % static_cast<int>(EVENT_IDS));
        }
    }
    for (const auto& [id, sets] : run->cross_flags) {
        if (sets[index].size() > cross_waits[id])
            fault("flag-never-waited", "CrossCoreSetFlag(%d) was never waited for", id);
    }
    if (mask_counts) fault("mask-mode", "the kernel ends in counter mode: SetMaskNorm is missing");
    if (atomic != Atomic::NONE) fault("atomic-mode", "the kernel ends with atomic copies on: SetAtomicNone is missing");
    for (const GmBuffer& buffer : run->buffers) {
        for (size_t i = 0; i < buffer.kind.size(); ++i) {
            if (buffer.kind[i] == 2 && buffer.writer[i].thread / PIPES == index) {
                fault("data-cache",
                      "SetValue of byte %zu of %s is never written back: DataCacheCleanAndInvalid is missing",
                      i * buffer.grain, buffer.name.c_str());
            }
        }
    }
}

}  // namespace emulator
