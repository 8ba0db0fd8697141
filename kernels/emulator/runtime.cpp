// The fibres that the cores run on, what synchronises them, and the C entry that emulate.py calls.
#include <algorithm>
#include <functional>

#include "run.h"

namespace emulator {

Core* current = nullptr;
Run* run = nullptr;

namespace {

constexpr size_t STACK_BYTES = 1 << 20;
constexpr int KERNEL_ARGUMENTS = 24;

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

}  // namespace

GmBuffer* find_gm(const void* pointer) {
    const auto* byte = static_cast<const uint8_t*>(pointer);
    for (GmBuffer& buffer : run->buffers) {
        if (byte >= buffer.base && byte < buffer.base + buffer.bytes) return &buffer;
    }
    return nullptr;
}

int block_count() { return static_cast<int>(run->cores.size()); }

void sync_all() {
    const int members = block_count();
    SyncGroup& group = run->group;
    current->barrier_all();
    const uint64_t round = group.arrived / members;
    Clock& clock = group.clocks[round % 2];
    if (group.arrived % members == 0) clock.clear();
    current->merge_into(clock);
    ++group.arrived;
    block("SyncAll of " + std::to_string(members) + " cores",
          [&] { return group.arrived >= (round + 1) * members; });
    current->learn_all(clock);
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
                run->message += " core " + std::to_string(i) +
                                (fibre.finished ? " has ended;" : " waits in " + fibre.waits_for + ";");
            }
            run->message.pop_back();
        }
    }
    current = nullptr;
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

std::string json(const std::map<std::string, uint64_t>& counts) {
    std::string text = "{";
    for (const auto& [name, count] : counts)
        text += (text.size() > 1 ? "," : "") + quoted(name) + ":" + std::to_string(count);
    return text + "}";
}

std::string json(const Counters& counters) {
    std::string gm = "{";
    for (const auto& [name, traffic] : counters.gm) {
        gm += (gm.size() > 1 ? "," : "") + quoted(name) + ":" +
              json({{"read_bytes", traffic.read_bytes},
                    {"written_bytes", traffic.written_bytes},
                    {"read_copies", traffic.read_copies},
                    {"write_copies", traffic.write_copies}});
    }
    return "{\"gm\":" + gm + "},\"repeats\":" + json(counters.repeats) + ",\"calls\":" + json(counters.calls) +
           ",\"scalar\":" + json(counters.scalar) + ",\"sync\":" + json(counters.sync) +
           ",\"ub_high_water\":" + std::to_string(counters.ub_high_water) + "}";
}

}  // namespace
}  // namespace emulator

using namespace emulator;

#define EXPORTED extern "C"

// What emulate.py says of a tensor: its fields are those of GmBuffer.
struct BufferArgument {
    const char* name;
    uint8_t* base;
    uint64_t bytes;
    uint32_t grain;
};

// Runs a kernel on `cores` cores. `arguments` are its parameters; the buffers are what they may point into.
// Returns 0 and leaves the counters (a JSON list, one entry a core) in emulator_report(), or 1 and the fault's message.
EXPORTED int emulator_run(void* kernel, int argument_count, void** arguments, int cores, uint32_t ub_bytes,
                          int buffer_count, const BufferArgument* buffers) {
    delete run;
    run = new Run;
    run->kernel = kernel;
    run->arguments.assign(arguments, arguments + argument_count);
    for (int i = 0; i < buffer_count; ++i) {
        const BufferArgument& given = buffers[i];
        run->buffers.push_back({given.name, given.base, given.bytes, given.grain, {}, {}, {}});
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
