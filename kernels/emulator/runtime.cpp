// The bodies of Core's rules, the fibres that the cores run on, and the C entry that emulate.py calls.
#include <dlfcn.h>
#include <execinfo.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>

#include "emulator/sync.h"

namespace emulator {

Core* current = nullptr;

namespace {

constexpr size_t STACK_BYTES = 1 << 20;
constexpr int KERNEL_ARGUMENTS = 24;
constexpr uint32_t CROSS_IDS = 16;

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool finished = false;
    std::string waits_for;
};

// What SyncAll shares. A core can be one round ahead of another, never two: two slots of clocks are enough.
struct SyncGroup {
    uint64_t arrived = 0;
    Clock clocks[2];
};

struct Run {
    std::vector<std::unique_ptr<Core>> cores;
    std::vector<Fibre> fibres;
    std::vector<GmBuffer> buffers;
    ucontext_t scheduler;
    void* kernel = nullptr;
    std::vector<void*> arguments;
    uint64_t key = 0;
    bool progressed = false;
    uint64_t copies = 0;  // out to global memory, so far
    std::map<int, SyncGroup> groups;
    std::map<int32_t*, Clock> block_flags;
    std::map<int, std::vector<std::vector<Clock>>> cross_flags;  // by id: for every core, the clock of each set
    std::string message, report;
    std::vector<uint64_t> trace;
};

Run* run = nullptr;

void maximum(Clock& target, const Clock& other) {
    for (size_t i = 0; i < target.size(); ++i) target[i] = std::max(target[i], other[i]);
}

// Gives the turn to the other cores until `ready`.
void block(const std::string& what, const std::function<bool()>& ready) {
    Fibre& fibre = run->fibres[current->index];
    fibre.waits_for = what;
    while (!ready()) {
        Core* self = current;
        swapcontext(&fibre.context, &run->scheduler);
        current = self;
    }
    fibre.waits_for.clear();
    run->progressed = true;
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
            run->trace.push_back(static_cast<uint64_t>(static_cast<char*>(frames[i]) - static_cast<char*>(info.dli_fbase)) - 1);
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

[[noreturn]] void gm_conflict(const Core& core, Pipe pipe, const GmBuffer& buffer, const GmAccess& other, uint64_t offset,
                              const char* api, const char* now, const char* before) {
    const int other_core = other.thread / PIPES;
    const char* other_pipe = PIPE_NAMES[other.thread % PIPES];
    if (other_core != core.index) {
        fault("gm-race", "%s (%s) %s byte %llu of %s, which core %d (%s) %s without synchronisation between", api,
              PIPE_NAMES[pipe], now, static_cast<unsigned long long>(offset), buffer.name.c_str(), other_core, other_pipe,
              before);
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
                fault("data-cache", "%s reads byte %llu of %s, which SetValue left in the data cache of core %d: "
                      "DataCacheCleanAndInvalid is missing", api, static_cast<unsigned long long>(i * buffer.grain),
                      buffer.name.c_str(), writer.thread / PIPES);
            }
        }
        if (buffer.reader[i].thread != me.thread) buffer.earlier_reader[i] = buffer.reader[i];
        buffer.reader[i] = me;
    }
    if (pipe == S) {
        const uint64_t line = offset / CACHE_LINE;
        const auto held = cached.emplace(std::pair(&buffer, line), run->copies).first;
        if (held->second < buffer.copied[line]) {
            fault("data-cache", "%s reads byte %llu of %s from a cache line that is older than a copy into it: "
                  "DataCacheCleanAndInvalid is missing", api, static_cast<unsigned long long>(offset), buffer.name.c_str());
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
        for (uint64_t line = offset / CACHE_LINE; line <= (offset + bytes - 1) / CACHE_LINE; ++line) buffer.copied[line] = run->copies;
    }
    if (kind == 2) {  // a whole cache line goes back to memory later: nobody else may write within it
        const uint64_t line = offset / CACHE_LINE * CACHE_LINE / buffer.grain;
        const uint64_t end = std::min<uint64_t>(buffer.writer.size(), line + CACHE_LINE / buffer.grain);
        for (uint64_t i = line; i < end; ++i) {
            if (buffer.writer[i].time && !ordered_thread(pipe, buffer.writer[i])) {
                gm_conflict(*this, pipe, buffer, buffer.writer[i], i * buffer.grain, api, "writes the cache line of", "wrote");
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
        fault("ub-overflow", "InitBuffer of %u bytes for %s: %u of %u bytes are taken (the last %u KB stay free)", bytes,
              name.c_str(), ub_used, ub_bytes - RESERVED_UB, RESERVED_UB / 1024);
    }
    ub_used += buffer.bytes;
    counters.ub_high_water = std::max<uint64_t>(counters.ub_high_water, ub_used);
    buffers.push_back(buffer);
    return static_cast<int>(buffers.size()) - 1;
}

void Core::reset_buffers() {
    for (Buffer& buffer : buffers) {
        if (!buffer.queued_type) continue;
        if (buffer.state != BufferState::FREE) fault("missing-free", "TPipe::Reset while a tensor of %s is in use", buffer.name.c_str());
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
        if (sets[index].size() > cross_waits[id]) fault("flag-never-waited", "CrossCoreSetFlag(%d) was never waited for", id);
    }
    if (mask_counts) fault("mask-mode", "the kernel ends in counter mode: SetMaskNorm is missing");
    if (atomic != Atomic::NONE) fault("atomic-mode", "the kernel ends with atomic copies on: SetAtomicNone is missing");
    for (const GmBuffer& buffer : run->buffers) {
        for (size_t i = 0; i < buffer.kind.size(); ++i) {
            if (buffer.kind[i] == 2 && buffer.writer[i].thread / PIPES == index) {
                fault("data-cache", "SetValue of byte %zu of %s is never written back: DataCacheCleanAndInvalid is missing",
                      i * buffer.grain, buffer.name.c_str());
            }
        }
    }
}

GmBuffer* find_gm(const void* pointer) {
    const auto* byte = static_cast<const uint8_t*>(pointer);
    for (GmBuffer& buffer : run->buffers) {
        if (byte >= buffer.base && byte < buffer.base + buffer.bytes) return &buffer;
    }
    return nullptr;
}

int block_count() { return static_cast<int>(run->cores.size()); }
uint64_t tiling_key() { return run->key; }

void sync_all(int members, const char* what) {
    SyncGroup& group = run->groups[members];
    if (current->index >= members) fault("sync-cores", "%s of %d cores is called on core %d", what, members, current->index);
    current->barrier_all();
    const uint64_t round = group.arrived / members;
    Clock& clock = group.clocks[round % 2];
    if (group.arrived % members == 0) clock.clear();
    current->merge_into(clock);
    ++group.arrived;
    block(std::string(what) + " of " + std::to_string(members) + " cores",
          [&] { return group.arrived >= (round + 1) * members; });
    current->learn_all(clock);
}

void block_set(int32_t* flag, const char* what) {
    if (*flag != 0 && *flag != 1) fault("workspace-not-zero", "%s found %d in its flag", what, *flag);
    block(std::string(what) + " for its flag to be cleared", [&] { return *flag == 0; });
    Clock& clock = run->block_flags[flag];
    if (!clock.empty()) current->learn_all(clock);
    *flag = 1;
    current->merge_into(clock);
}

void block_wait(int32_t* flag, const char* what) {
    if (*flag != 0 && *flag != 1) fault("workspace-not-zero", "%s found %d in its flag", what, *flag);
    block(std::string(what) + " for a flag that another core sets", [&] { return *flag == 1; });
    Clock& clock = run->block_flags[flag];
    if (clock.empty()) fault("workspace-not-zero", "%s found its flag set before any core set it", what);
    current->learn_all(clock);
    *flag = 0;
    current->merge_into(clock);
}

namespace {

void need_scheduler(const char* api, int id) {
    if (!current->hard_sync) fault("kernel-type", "%s needs KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0)", api);
    if (id >= static_cast<int>(CROSS_IDS)) fault("event-id", "%s(%d): ids are 0 to 15", api, id);
}

}  // namespace

void cross_set(Pipe pipe, int id) {
    need_scheduler("CrossCoreSetFlag", id);
    auto& sets = run->cross_flags[id];
    if (sets.empty()) sets.resize(run->cores.size());
    auto& mine = sets[current->index];
    if (mine.size() - current->cross_waits[id] == 15) fault("event-reused", "CrossCoreSetFlag(%d): its counter ends at 15", id);
    mine.emplace_back();
    current->snapshot(pipe, mine.back());
}

void cross_wait(int id) {
    need_scheduler("CrossCoreWaitFlag", id);
    auto& sets = run->cross_flags[id];
    if (sets.empty()) sets.resize(run->cores.size());
    const uint32_t round = current->cross_waits[id]++;
    block("CrossCoreWaitFlag(" + std::to_string(id) + ")", [&] {
        return std::all_of(sets.begin(), sets.end(), [&](const auto& of_core) { return of_core.size() > round; });
    });
    for (const auto& of_core : sets) current->learn_all(of_core[round]);
}

namespace {

template <size_t... Index>
void call_with(void* kernel, const std::vector<void*>& arguments, std::index_sequence<Index...>) {
    using Kernel = void (*)(decltype(static_cast<void>(Index), static_cast<void*>(nullptr))...);
    reinterpret_cast<Kernel>(kernel)(arguments[Index]...);
}

template <size_t Count>
void call(void* kernel, const std::vector<void*>& arguments) {
    if (arguments.size() == Count) return call_with(kernel, arguments, std::make_index_sequence<Count>());
    if constexpr (Count < KERNEL_ARGUMENTS) call<Count + 1>(kernel, arguments);
}

void run_core(int index) {
    try {
        call<1>(run->kernel, run->arguments);
        current->finish();
    } catch (const Fault& stopped) {
        run->message = stopped.message;
    }
    run->fibres[index].finished = true;
    run->progressed = true;
    swapcontext(&run->fibres[index].context, &run->scheduler);
}

// Lets every core run in turn until it ends or waits; a round in which none of them moves is a deadlock.
void schedule() {
    for (bool unfinished = true; unfinished && run->message.empty();) {
        unfinished = run->progressed = false;
        for (size_t i = 0; i < run->fibres.size() && run->message.empty(); ++i) {
            Fibre& fibre = run->fibres[i];
            if (fibre.finished) continue;
            if (fibre.waits_for.empty()) run->progressed = true;
            current = run->cores[i].get();
            swapcontext(&run->scheduler, &fibre.context);
            unfinished = unfinished || !fibre.finished;
        }
        if (unfinished && !run->progressed && run->message.empty()) {
            run->message = "deadlock:";
            for (size_t i = 0; i < run->fibres.size(); ++i) {
                const Fibre& fibre = run->fibres[i];
                run->message += " core " + std::to_string(i) + (fibre.finished ? " has ended;" : " waits in " + fibre.waits_for + ";");
            }
            run->message.pop_back();
        }
    }
    current = nullptr;
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

std::string json(const std::map<std::string, uint64_t>& counts) {
    std::string text = "{";
    for (const auto& [name, count] : counts) text += (text.size() > 1 ? "," : "") + quoted(name) + ":" + std::to_string(count);
    return text + "}";
}

std::string json(const Counters& counters) {
    std::string gm = "{";
    for (const auto& [name, traffic] : counters.gm) {
        gm += (gm.size() > 1 ? "," : "") + quoted(name) + ":" +
              json({{"read_bytes", traffic.read_bytes}, {"written_bytes", traffic.written_bytes},
                    {"read_copies", traffic.read_copies}, {"write_copies", traffic.write_copies}});
    }
    return "{\"gm\":" + gm + "},\"repeats\":" + json(counters.repeats) + ",\"calls\":" + json(counters.calls) +
           ",\"scalar\":" + json(counters.scalar) + ",\"sync\":" + json(counters.sync) +
           ",\"ub_high_water\":" + std::to_string(counters.ub_high_water) +
           ",\"ub_copies\":" + std::to_string(counters.ub_copies) + "}";
}

}  // namespace
}  // namespace emulator

using namespace emulator;

#define EXPORTED extern "C"

// Runs a kernel on `cores` cores. `arguments` are its parameters; the buffers are what they may point into.
// Returns 0 and leaves the counters (a JSON list, one entry a core) in emulator_report(), or 1 and the fault's message.
EXPORTED int emulator_run(void* kernel, int argument_count, void** arguments, int cores, uint32_t ub_bytes, uint64_t key,
                          int buffer_count, const char** names, void** bases, const uint64_t* sizes,
                          const uint32_t* grains) {
    delete run;
    run = new Run;
    run->kernel = kernel;
    run->key = key;
    run->arguments.assign(arguments, arguments + argument_count);
    run->buffers.resize(buffer_count);
    for (int i = 0; i < buffer_count; ++i) {
        run->buffers[i].name = names[i];
        run->buffers[i].base = static_cast<uint8_t*>(bases[i]);
        run->buffers[i].bytes = sizes[i];
        run->buffers[i].grain = grains[i];
    }
    run->fibres.resize(cores);
    for (int i = 0; i < cores; ++i) {
        run->cores.push_back(std::make_unique<Core>(i, cores, ub_bytes));
        Fibre& fibre = run->fibres[i];
        fibre.stack.reset(new char[STACK_BYTES]);
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = STACK_BYTES;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, reinterpret_cast<void (*)()>(run_core), 1, i);
    }
    schedule();
    if (!run->message.empty()) return 1;
    run->report = "[";
    for (const auto& core : run->cores) run->report += (core->index ? "," : "") + json(core->counters);
    run->report += "]";
    return 0;
}

EXPORTED const char* emulator_report() { return run->message.empty() ? run->report.c_str() : run->message.c_str(); }

EXPORTED int emulator_trace(uint64_t* addresses, int room) {
    const int count = std::min<int>(room, static_cast<int>(run->trace.size()));
    std::copy(run->trace.begin(), run->trace.begin() + count, addresses);
    return count;
}
