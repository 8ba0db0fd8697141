// How one launch is cut: the struct that the host fills and the kernel reads, and the only function that fills it.
// Plain C++ without CANN headers, so that op_host, the kernel and the tests share it.
#pragma once

#ifndef __CCE_AICORE__
#include <algorithm>
#endif
#include <cstdint>

// Functions that the device calls too.
#ifdef __CCE_AICORE__
#define TOPK_DISTILL_SHARED __aicore__ inline constexpr
#else
#define TOPK_DISTILL_SHARED constexpr
#endif

// What the host knows. `logitBytes` is 4 (fp32) or 2 (fp16, bf16); `ubBytes` the SoC's whole unified buffer.
struct TopkDistillLossProblem {
    int64_t rows;
    int64_t vocab;
    int64_t topK;
    int64_t logitBytes;
    int64_t cores;
    int64_t ubBytes;
    float ceWeight;
    float kdWeight;
    float temperature;
    int64_t divergence;
    int64_t support;
    bool writeGradient;
    int64_t split;    // 0: choose; 1: stream a row through one core; 2: keep a row on chip over two cores
    int64_t maxTile;  // 0: as large as fits; otherwise tiles hold no more elements (for tests)
};

struct TopkDistillLossTiling {
    uint32_t rows;
    uint32_t vocab;
    uint32_t topK;
    uint32_t cores;   // that run; a multiple of split
    uint32_t split;   // cores that share a row
    uint32_t span;    // columns of a core's share of a row (the last core's may be shorter)
    uint32_t tile;    // elements of a tile, a multiple of 256
    uint32_t slots;   // tiles of logits in the unified buffer
    uint32_t floats;  // tiles of fp32 work in the unified buffer
    uint32_t lanes;   // floats of a K-wide vector, a multiple of 8
    float ceWeight;
    float kdWeight;
    float temperature;
    uint32_t divergence;     // 0 forward_kl, 1 reverse_kl, 2 jsd
    uint32_t support;        // 0 tail_bucket, 1 renormalised, 2 truncated, 3 sampled
    uint32_t writeGradient;  // 0: the logits are left alone
};

static_assert(sizeof(TopkDistillLossTiling) == 64, "the kernel copies this struct: keep it small and free of padding");

namespace topk_distill {

constexpr int64_t MAX_TOP_K = 128;           // a list index fits in 8 bits, and the K-wide vectors stay small
constexpr int64_t MAX_VOCAB = (1 << 24) - 1;  // an id shares 32 bits with a list index
constexpr int64_t MAX_ROWS = 0x7fffffff;
constexpr int64_t RESERVED_UB = 8 * 1024;  // the last 8 KB: Select and other instructions use them as scratch
constexpr int64_t MAX_TILE = 255 * 64;     // one reduction instruction repeats 255 times at most
constexpr int64_t STREAM_SLOTS = 3;        // one computes, one is on its way in, one on its way out
constexpr int64_t STREAM_FLOATS = 3;       // the last three tiles of the first pass stay for the second

constexpr int64_t VECTORS = 16;        // K-wide vectors: row_ids.h holds 8, row_math.h 8
constexpr int64_t CHUNK = 64;          // rows whose weights are read together; also the buckets of a list
constexpr int64_t SCRATCH_BYTES = 8 * 256;  // scalars on their way between the pipes
constexpr int64_t BLOCK_BYTES = 32;

TOPK_DISTILL_SHARED int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Lanes of a K-wide vector: K padded to a block, one more block for the label or the bucket of the rest.
TOPK_DISTILL_SHARED int64_t Lanes(int64_t topK) { return RoundUp(topK, 8) + 8; }

// Bytes of the unified buffer beside the tiles; the kernel's InitBuffer calls add up to this.
TOPK_DISTILL_SHARED int64_t SmallBytes(int64_t lanes, int64_t tile) {
    return VECTORS * lanes * 4 + 3 * RoundUp(tile / 64, 64) * 4 + 2 * CHUNK * 4 + CHUNK * BLOCK_BYTES + SCRATCH_BYTES;
}

TOPK_DISTILL_SHARED int64_t NeededBytes(int64_t lanes, int64_t tile, int64_t slots, int64_t floats,
                                        int64_t logitBytes) {
    return SmallBytes(lanes, tile) + tile * (slots * logitBytes + floats * 4);
}

// What is left of 192 KB at the largest K must hold the smallest tiles twice over.
static_assert(NeededBytes(Lanes(MAX_TOP_K), 512, STREAM_SLOTS, STREAM_FLOATS, 4) < 192 * 1024 - RESERVED_UB,
              "no room for tiles");

#ifndef __CCE_AICORE__  // from here on for the host only

// Bytes of user workspace: with two cores a row, what they tell each other (two copies, used in turn).
inline uint64_t WorkspaceBytes(const TopkDistillLossTiling& t) {
    return t.split == 2 ? 2ull * t.cores * (t.lanes + 64) * 4 : 0;
}

// The largest tile (a multiple of 256 elements, 512 bytes of bf16) that fits with so many slots and floats; 0 if none.
inline int64_t FitTile(int64_t limit, int64_t lanes, int64_t slots, int64_t floats, int64_t logitBytes, int64_t bytes) {
    int64_t tile = (bytes - SmallBytes(lanes, 0)) / (slots * logitBytes + floats * 4) / 256 * 256;
    tile = std::min({tile, MAX_TILE / 256 * 256, limit});
    while (tile > 0 && NeededBytes(lanes, tile, slots, floats, logitBytes) > bytes) tile -= 256;
    return std::max<int64_t>(tile, 0);
}

inline void Lay(TopkDistillLossTiling& t, int64_t split, int64_t span, int64_t tile, int64_t slots, int64_t floats) {
    t.split = static_cast<uint32_t>(split);
    t.span = static_cast<uint32_t>(span);
    t.tile = static_cast<uint32_t>(tile);
    t.slots = static_cast<uint32_t>(slots);
    t.floats = static_cast<uint32_t>(floats);
}

// A row's share kept on chip: all of its tiles have a slot, and one fp32 tile is left to work in.
inline bool FitOnChip(const TopkDistillLossProblem& p, int64_t limit, int64_t bytes, TopkDistillLossTiling& t) {
    const int64_t span = RoundUp((p.vocab + 1) / 2, 256);
    if (span >= p.vocab) return false;
    for (int64_t slots = 1; slots <= 64; ++slots) {
        const int64_t tile = FitTile(limit, Lanes(p.topK), slots, 1, p.logitBytes, bytes);
        if (tile == 0) return false;
        if (tile * slots < span + 256) continue;  // a row that starts between two 512-byte lines has a short first tile
        Lay(t, 2, span, tile, slots, 1);
        return true;
    }
    return false;
}

inline const char* Refusal(const TopkDistillLossProblem& p) {
    if (p.rows < 0 || p.rows > MAX_ROWS) return "rows must be 0 to 2^31 - 1";
    if (p.vocab < 1 || p.vocab > MAX_VOCAB) return "the vocabulary must be 1 to 2^24 - 1";
    if (p.topK < 1 || p.topK > MAX_TOP_K) return "K must be 1 to 128";
    if (p.logitBytes != 2 && p.logitBytes != 4) return "logits must be float32, float16 or bfloat16";
    if (p.cores < 1) return "there is no vector core";
    if (!(p.temperature > 0)) return "temperature must be positive";
    if (!(p.ceWeight >= 0) || !(p.kdWeight >= 0)) return "ce_weight and kd_weight must be 0 or more";
    if (p.support < 0 || p.support > 3) return "support must be 0 to 3";
    if (p.divergence < 0 || p.divergence > 2) return "divergence must be 0 to 2";
    if (p.support > 1 && p.divergence != 0) return "truncated and sampled supports take forward_kl only";
    return nullptr;
}

// Fills the tiling. Returns nullptr, or what is wrong with the problem.
inline const char* MakeTiling(const TopkDistillLossProblem& p, TopkDistillLossTiling& t) {
    if (const char* refusal = Refusal(p)) return refusal;
    const int64_t bytes = p.ubBytes - RESERVED_UB;
    const int64_t limit = p.maxTile > 0 ? RoundUp(p.maxTile, 256) : MAX_TILE;
    t = {};
    t.rows = static_cast<uint32_t>(p.rows);
    t.vocab = static_cast<uint32_t>(p.vocab);
    t.topK = static_cast<uint32_t>(p.topK);
    t.lanes = static_cast<uint32_t>(Lanes(p.topK));
    t.ceWeight = p.ceWeight;
    t.kdWeight = p.kdWeight;
    t.temperature = p.temperature;
    t.divergence = static_cast<uint32_t>(p.divergence);
    t.support = static_cast<uint32_t>(p.support);
    t.writeGradient = p.writeGradient;
    const int64_t tile = FitTile(std::min(limit, RoundUp(p.vocab, 256)), Lanes(p.topK), STREAM_SLOTS, STREAM_FLOATS,
                                 p.logitBytes, bytes);
    if (tile == 0) return "the unified buffer is too small for one tile";
    Lay(t, 1, p.vocab, tile, STREAM_SLOTS, STREAM_FLOATS);
    // On chip a row is read once whatever its length; it needs a second core, and rows enough to keep all cores busy.
    const bool possible = p.cores >= 2 && p.logitBytes == 2 && p.temperature == 1.0f && p.writeGradient;
    const bool worthwhile = p.rows >= p.cores / 2 && static_cast<int64_t>(t.tile) * t.slots < p.vocab;
    if (p.split == 2 && !possible) return "two cores a row need 16-bit logits, temperature 1, a gradient and two cores";
    const bool tried = p.split == 2 || (p.split == 0 && possible && worthwhile);
    const bool onChip = tried && FitOnChip(p, limit, bytes, t);  // leaves t alone where it does not fit
    if (p.split == 2 && !onChip) return "half a row does not fit into the unified buffer";
    t.cores = static_cast<uint32_t>(std::min(p.cores / t.split, std::max<int64_t>(p.rows, 1)) * t.split);
    return nullptr;
}

#endif

}  // namespace topk_distill
