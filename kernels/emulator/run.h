// One run of a kernel: its cores, their fibres, its tensors, and what the cores share. Private to the runtime.
#pragma once

#include <ucontext.h>

#include <memory>
#include <string>
#include <vector>

#include "emulator/sync.h"

namespace emulator {

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
    bool progressed = false;
    SyncGroup group;
    std::string message, report;
    std::vector<uint64_t> trace;
};

extern Run* run;

}  // namespace emulator
