// One emulated vector core: its unified buffer, the clocks that say which work of which pipe is known to be finished,
// the flags, and the counters. core.cpp enforces every rule about ordering and memory.
//
// Ordering. A core has four pipes (S scalar, V vector, MTE2 copies in, MTE3 copies out). Each instruction of a pipe
// gets the next time of that pipe. `known[p]` is a vector clock: up to which time of every pipe of every core the next
// instruction of pipe p may rely on results. Only events, barriers and cross-core waits raise it, as with auto-sync
// off.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace AscendC {

// source_destination. Events of pipes that a vector core does not have are left out.
enum class HardEvent : uint8_t {
    MTE2_V, V_MTE2, MTE3_V, V_MTE3, V_V, MTE3_MTE2, MTE2_MTE3, S_V, V_S, S_MTE2, MTE2_S, S_MTE3, MTE3_S
};

}  // namespace AscendC

namespace emulator {

enum Pipe : uint8_t { S, V, MTE2, MTE3, PIPES };
inline const char* const PIPE_NAMES[] = {"S", "V", "MTE2", "MTE3"};
constexpr uint32_t BLOCK = 32, REPEAT_BYTES = 256, RESERVED_UB = 8 * 1024;
constexpr int EVENT_IDS = 8;

// In the order of HardEvent.
struct EventPipes {
    Pipe from, to;
    const char* name;
};
constexpr EventPipes EVENTS[] = {
    {MTE2, V, "MTE2_V"},       {V, MTE2, "V_MTE2"},       {MTE3, V, "MTE3_V"}, {V, MTE3, "V_MTE3"}, {V, V, "V_V"},
    {MTE3, MTE2, "MTE3_MTE2"}, {MTE2, MTE3, "MTE2_MTE3"}, {S, V, "S_V"},       {V, S, "V_S"},       {S, MTE2, "S_MTE2"},
    {MTE2, S, "MTE2_S"},       {S, MTE3, "S_MTE3"},       {MTE3, S, "MTE3_S"},
};

struct Fault {
    std::string message;
};

// Stops the run: "rule: core N: what". The rule's name is what tests look for.
[[noreturn]] void fault(const char* rule, const char* format, ...) __attribute__((format(printf, 2, 3)));

using Clock = std::vector<uint32_t>;

struct Flag {
    bool pending = false;
    Clock clock;
};

// What TPipe::InitBuffer made.
struct Buffer {
    uint32_t address, bytes;
    std::string name;
};

// Who last wrote and read each 32-byte block of the unified buffer.
struct UbShadow {
    std::vector<uint8_t> written, writer;  // written: one byte a UB byte, 0 = never written
    std::vector<uint32_t> write_time, read_time[PIPES];
    std::vector<const char*> write_api, read_api;
};

struct Access {
    uint16_t thread = 0;  // core * PIPES + pipe
    uint32_t time = 0;
};

// A tensor in global memory, with who last touched each of its elements.
struct GmBuffer {
    std::string name;
    uint8_t* base = nullptr;
    uint64_t bytes = 0;
    uint32_t grain = 1;  // bytes that one entry of the shadow stands for
    std::vector<Access> writer, reader, earlier_reader;
    void shadow();
};

struct Traffic {
    uint64_t read_bytes = 0, written_bytes = 0, read_copies = 0, write_copies = 0;
};

struct Counters {
    std::map<std::string, Traffic> gm;
    std::map<std::string, uint64_t> repeats, calls, scalar, sync;
    uint64_t ub_high_water = 0;
};

class Core {
  public:
    Core(int index, int cores, uint32_t ub_bytes);

    // Starts the next instruction of a pipe; the accesses that follow are its own.
    void begin(Pipe of_pipe, const char* name) {
        pipe = of_pipe;
        api = name;
        ++time[pipe];
    }
    void read_ub(uint32_t address, uint64_t bytes);
    void write_ub(uint32_t address, uint64_t bytes);
    void read_gm(GmBuffer& buffer, uint64_t offset, uint64_t bytes);
    void write_gm(GmBuffer& buffer, uint64_t offset, uint64_t bytes);
    void forget_ub(uint32_t address, uint64_t bytes);  // its content is undefined from now on

    // Events: indices of EVENTS.
    void set_flag(int event, int id);
    void wait_flag(int event, int id);

    void barrier(Pipe of_pipe) { known[of_pipe][index * PIPES + of_pipe] = time[of_pipe]; }
    void barrier_all();
    void merge_into(Clock& clock) const;              // clock = max(clock, all that this core has done or knows)
    void snapshot(Pipe of_pipe, Clock& clock) const;  // what is finished when an instruction of the pipe ends
    void learn_all(const Clock& clock);

    int add_buffer(uint32_t bytes);
    const char* name_of(uint32_t address) const;
    void finish();  // the rules that hold at the end of a kernel

    void count_repeats(uint64_t repeats) {
        counters.repeats[api] += repeats ? repeats : 1;
        ++counters.calls[api];
    }

    int index;
    uint32_t ub_bytes, ub_used = 0;
    std::vector<uint8_t> storage;
    uint8_t* ub;
    Pipe pipe = S;          // of the instruction that runs
    const char* api = "";  // its name
    uint32_t time[PIPES] = {};
    Clock known[PIPES];
    std::map<int, Flag> flags;  // event * EVENT_IDS + id
    std::vector<Buffer> buffers;
    Counters counters;
    UbShadow shadow;

    bool hard_sync = false;  // the kernel's type starts the scheduler that SyncAll needs

  private:
    uint16_t thread(int of_pipe) const { return static_cast<uint16_t>(index * PIPES + of_pipe); }
    bool ordered(const Access& access) const;
    void check_ub(uint32_t block, const Access& other, const char* now, const char* other_api,
                  const char* before) const;
    void check_gm(const GmBuffer& buffer, uint64_t entry, const Access& other, const char* now,
                  const char* before) const;
    [[noreturn]] void hazard(const Access& other, const char* now, const std::string& where, const std::string& who,
                             const char* before) const;
};

// The core whose fibre runs now, and what all cores share.
extern Core* current;
inline Core& core() { return *current; }
GmBuffer* find_gm(const void* pointer);
int block_count();

void sync_all();  // blocks the fibre until the others have come, or the run is stopped as a deadlock

}  // namespace emulator
