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

void check_id(const char* call, int event, int id) {
    if (id < 0 || id >= EVENT_IDS) fault("event-id", "%s<%s>(%d): ids are 0 to 7", call, EVENTS[event].name, id);
}

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

Core::Core(int core_index, int cores, uint32_t bytes) : index(core_index), ub_bytes(bytes) {
    storage.assign(bytes + 64, 0xA5);
    ub = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
    const uint32_t blocks = bytes / BLOCK;
    shadow.written.assign(bytes, 0);
    shadow.writer.assign(blocks, 0);
    shadow.write_time.assign(blocks, 0);
    shadow.write_api.assign(blocks, "");
    shadow.read_api.assign(blocks, "");
    for (int each = 0; each < PIPES; ++each) {
        shadow.read_time[each].assign(blocks, 0);
        known[each].assign(static_cast<size_t>(cores) * PIPES, 0);
    }
}

// Whether the instruction that runs may rely on an access.
bool Core::ordered(const Access& access) const {
    if (access.thread == thread(pipe) && (pipe == S || access.time == time[pipe])) return true;
    return known[pipe][access.thread] >= access.time;
}

void Core::hazard(const Access& other, const char* now, const std::string& where, const std::string& who,
                  const char* before) const {
    const std::string what = std::string(api) + " (" + PIPE_NAMES[pipe] + ") " + now + " " + where + ", which " + who +
                             " (" + PIPE_NAMES[other.thread % PIPES] + ") " + before;
    if (other.thread / PIPES != index) fault("gm-race", "%s without synchronisation between", what.c_str());
    if (other.thread == thread(pipe))
        fault("missing-barrier", "%s: PipeBarrier<PIPE_%s> is missing", what.c_str(), PIPE_NAMES[pipe]);
    fault("missing-sync", "%s: no %s_%s event lies between", what.c_str(), PIPE_NAMES[other.thread % PIPES],
          PIPE_NAMES[pipe]);
}

void Core::check_ub(uint32_t block, const Access& other, const char* now, const char* other_api,
                    const char* before) const {
    if (!other.time || ordered(other)) return;
    const uint32_t begin = block * BLOCK;
    hazard(other, now,
           "UB bytes " + std::to_string(begin) + " to " + std::to_string(begin + BLOCK) + " of " + name_of(begin),
           other_api, before);
}

void Core::check_gm(const GmBuffer& buffer, uint64_t entry, const Access& other, const char* now,
                    const char* before) const {
    if (!other.time || ordered(other)) return;
    hazard(other, now, "byte " + std::to_string(entry * buffer.grain) + " of " + buffer.name,
           "core " + std::to_string(other.thread / PIPES), before);
}

void Core::read_ub(uint32_t address, uint64_t bytes) {
    if (!bytes) return;
    if (const void* hole = memchr(shadow.written.data() + address, 0, bytes)) {
        const auto at = static_cast<uint32_t>(static_cast<const uint8_t*>(hole) - shadow.written.data());
        fault("uninitialised", "%s reads UB byte %u, offset %u of its operand in %s, that nothing has written", api, at,
              at - address, name_of(address));
    }
    for (uint64_t block = address / BLOCK; block <= (address + bytes - 1) / BLOCK; ++block) {
        check_ub(block, {thread(shadow.writer[block]), shadow.write_time[block]}, "reads", shadow.write_api[block],
                 "wrote");
        shadow.read_time[pipe][block] = time[pipe];
        shadow.read_api[block] = api;
    }
}

void Core::write_ub(uint32_t address, uint64_t bytes) {
    if (!bytes) return;
    for (uint64_t block = address / BLOCK; block <= (address + bytes - 1) / BLOCK; ++block) {
        check_ub(block, {thread(shadow.writer[block]), shadow.write_time[block]}, "overwrites", shadow.write_api[block],
                 "wrote");
        // A pipe starts its instructions in order, so that an earlier read of its own is never overtaken.
        for (int reader = 0; reader < PIPES; ++reader) {
            if (reader == pipe) continue;
            check_ub(block, {thread(reader), shadow.read_time[reader][block]}, "overwrites", shadow.read_api[block],
                     "reads");
        }
        shadow.write_time[block] = time[pipe];
        shadow.writer[block] = pipe;
        shadow.write_api[block] = api;
    }
    memset(shadow.written.data() + address, 1, bytes);
}

void Core::forget_ub(uint32_t address, uint64_t bytes) {
    memset(shadow.written.data() + address, 0, bytes);
    memset(ub + address, 0xA5, bytes);
}

void GmBuffer::shadow() {
    if (!writer.empty()) return;
    const uint64_t entries = (bytes + grain - 1) / grain;
    for (auto* accesses : {&writer, &reader, &earlier_reader}) accesses->resize(entries);
}

void Core::read_gm(GmBuffer& buffer, uint64_t offset, uint64_t bytes) {
    if (!bytes) return;
    buffer.shadow();
    const Access me{thread(pipe), time[pipe]};
    for (uint64_t i = offset / buffer.grain; i <= (offset + bytes - 1) / buffer.grain; ++i) {
        check_gm(buffer, i, buffer.writer[i], "reads", "wrote");
        if (buffer.reader[i].thread != me.thread) buffer.earlier_reader[i] = buffer.reader[i];
        buffer.reader[i] = me;
    }
    counters.gm[buffer.name].read_bytes += bytes;
}

void Core::write_gm(GmBuffer& buffer, uint64_t offset, uint64_t bytes) {
    if (!bytes) return;
    buffer.shadow();
    const Access me{thread(pipe), time[pipe]};
    for (uint64_t i = offset / buffer.grain; i <= (offset + bytes - 1) / buffer.grain; ++i) {
        check_gm(buffer, i, buffer.writer[i], "overwrites", "wrote");
        for (const Access& reader : {buffer.reader[i], buffer.earlier_reader[i]}) {
            if (reader.thread != me.thread) check_gm(buffer, i, reader, "overwrites", "reads");
        }
        buffer.writer[i] = me;
    }
    counters.gm[buffer.name].written_bytes += bytes;
}

void Core::set_flag(int event, int id) {
    check_id("SetFlag", event, id);
    Flag& flag = flags[event * EVENT_IDS + id];
    if (flag.pending) fault("event-reused", "SetFlag<%s>(%d) while the flag is still set", EVENTS[event].name, id);
    flag.pending = true;
    snapshot(EVENTS[event].from, flag.clock);
}

void Core::wait_flag(int event, int id) {
    check_id("WaitFlag", event, id);
    Flag& flag = flags[event * EVENT_IDS + id];
    if (!flag.pending)
        fault("wait-without-set", "WaitFlag<%s>(%d) without SetFlag: the core hangs", EVENTS[event].name, id);
    flag.pending = false;
    maximum(known[EVENTS[event].to], flag.clock);
}

void Core::snapshot(Pipe of_pipe, Clock& clock) const {
    clock = known[of_pipe];
    clock[thread(of_pipe)] = time[of_pipe];
}

void Core::merge_into(Clock& clock) const {
    if (clock.empty()) clock.assign(known[0].size(), 0);
    for (int each = 0; each < PIPES; ++each) {
        maximum(clock, known[each]);
        clock[thread(each)] = std::max(clock[thread(each)], time[each]);
    }
}

void Core::learn_all(const Clock& clock) {
    for (Clock& each : known) maximum(each, clock);
}

void Core::barrier_all() {
    Clock all;
    merge_into(all);
    learn_all(all);
}

int Core::add_buffer(uint32_t bytes) {
    const Buffer buffer{ub_used, (bytes + BLOCK - 1) / BLOCK * BLOCK, "TBuf " + std::to_string(buffers.size())};
    if (uint64_t{ub_used} + buffer.bytes > ub_bytes - RESERVED_UB) {
        fault("ub-overflow", "InitBuffer of %u bytes for %s: %u of %u bytes are taken (the last %u KB stay free)",
              bytes, buffer.name.c_str(), ub_used, ub_bytes - RESERVED_UB, RESERVED_UB / 1024);
    }
    ub_used += buffer.bytes;
    counters.ub_high_water = std::max<uint64_t>(counters.ub_high_water, ub_used);
    buffers.push_back(buffer);
    return static_cast<int>(buffers.size()) - 1;
}

const char* Core::name_of(uint32_t address) const {
    for (const Buffer& buffer : buffers) {
        if (address >= buffer.address && address < buffer.address + buffer.bytes) return buffer.name.c_str();
    }
    return "no buffer";
}

void Core::finish() {
    for (const auto& [key, flag] : flags) {
        if (flag.pending) {
            fault("flag-never-waited", "SetFlag<%s>(%d) was never waited for", EVENTS[key / EVENT_IDS].name,
                  key % EVENT_IDS);
        }
    }
}

}  // namespace emulator
