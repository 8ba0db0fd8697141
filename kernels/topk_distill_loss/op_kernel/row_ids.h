// The label and the teacher's ids of one row: a list for each tile, so that a tile touches its own ids only, and the
// logits taken out of the row at these ids. All scalar work of a row is here, and grows with K, not with V.
#pragma once

#include "vector_ops.h"

namespace topk_distill {

// What a core does of a row: columns [first, first + columns), cut where the addresses are multiples of 512 bytes.
struct RowPlan {
    uint32_t row = 0;
    float weight = 0;
    uint64_t offset = 0;   // of column `first` in the logits, in elements
    uint32_t first = 0, columns = 0;
    uint32_t tile = 0;     // elements of a whole tile
    uint32_t skew = 0;     // elements by which the first tile is shorter
    uint32_t tiles = 0;

    __aicore__ inline uint32_t Begin(uint32_t index) const { return index == 0 ? 0 : index * tile - skew; }
    __aicore__ inline uint32_t Size(uint32_t index) const {
        const uint32_t end = (index + 1) * tile - skew;
        return (end < columns ? end : columns) - Begin(index);
    }
};

class RowIds {
  public:
    static constexpr uint32_t NONE = 255;  // no further entry in a list
    static constexpr uint32_t BUCKETS = static_cast<uint32_t>(CHUNK);

    LocalTensor<int32_t> ids, label;  // as loaded; `label` and `tail` hold one value
    Floats logp, tail;
    Floats z;       // logits at the ids; FAR where K is padded, or elsewhere than in this core's columns
    LocalTensor<uint32_t> links, heads;

    uint32_t topK = 0, labelLane = 0;  // the lane of z that holds the label's logit: K rounded up to a block
    uint32_t built = 0, valid = 0, own = 0;
    int32_t labelId = 0;
    uint32_t labelEntry = 0;  // its place among the ids, or topK when it is none of them
    float logpTop = FAR_LOGIT, zTop = FAR_LOGIT, zFirst = FAR_LOGIT, zLabel = FAR_LOGIT;

    // Starts a row whose ids have been loaded; z was filled with FAR.
    __aicore__ inline void Start(const RowPlan& plan) {
        plan_ = plan;
        occupied_ = 0;
        built = valid = own = 0;
        labelEntry = topK;
        labelId = label.GetValue(0);
        logpTop = zTop = zFirst = zLabel = FAR_LOGIT;
    }

    // Lists up to `count` further ids, and the label after the last one.
    __aicore__ inline void Build(uint32_t count) {
        for (; count > 0 && built < topK; --count, ++built) {
            const int32_t id = ids.GetValue(built);
            if (id < 0) {
                logp.SetValue(built, FAR_LOGIT);
                continue;
            }
            ++valid;
            logpTop = LargerOf(logpTop, logp.GetValue(built));
            if (id == labelId) labelEntry = built;
            Push(built, id);
        }
        if (built == topK) {
            ++built;
            if (labelEntry == topK) Push(topK, labelId);
        }
    }

    __aicore__ inline bool LabelInside() const { return labelEntry < topK; }
    __aicore__ inline uint32_t Lane(uint32_t entry) const { return entry < topK ? entry : labelLane; }

    // Whether a list that this tile shares has entries: tiles 64 apart share one.
    __aicore__ inline bool Any(uint32_t tileIndex) const { return (occupied_ >> (tileIndex % BUCKETS)) & 1; }

    // Takes the logits of the tile's ids out of it and into z.
    template <typename T>
    __aicore__ inline void Gather(const LocalTensor<T>& tile, uint32_t tileIndex) {
        const uint32_t begin = plan_.Begin(tileIndex), size = plan_.Size(tileIndex);
        for (uint32_t entry = heads.GetValue(tileIndex % BUCKETS); entry != NONE;) {
            const uint32_t link = links.GetValue(entry), at = (link & 0xffffff) - begin;
            if (at < size) {
                Note(entry, LargerOf(TakeOut(tile, at), FAR_LOGIT));
                ++own;
            }
            entry = link >> 24;
        }
    }

    // Writes the gradients of the tile's ids over what the vector unit put there.
    template <typename T>
    __aicore__ inline void Scatter(const LocalTensor<T>& tile, uint32_t tileIndex, const Floats& gradients,
                                   float labelGradient) const {
        const uint32_t begin = plan_.Begin(tileIndex), size = plan_.Size(tileIndex);
        for (uint32_t entry = heads.GetValue(tileIndex % BUCKETS); entry != NONE;) {
            const uint32_t link = links.GetValue(entry), at = (link & 0xffffff) - begin;
            if (at < size) PutIn(tile, at, entry == labelEntry ? labelGradient : gradients.GetValue(entry));
            entry = link >> 24;
        }
    }

  private:
    __aicore__ inline void Push(uint32_t entry, int32_t id) {
        const uint32_t local = static_cast<uint32_t>(id) - plan_.first;  // wraps for an id before the first column
        if (local >= plan_.columns) return;                              // another core's, or no id at all
        const uint32_t bucket = (local + plan_.skew) / plan_.tile % BUCKETS;
        links.SetValue(entry, local | ((Any(bucket) ? heads.GetValue(bucket) : NONE) << 24));
        heads.SetValue(bucket, entry);
        occupied_ |= 1ull << bucket;
    }

    __aicore__ inline void Note(uint32_t entry, float value) {
        z.SetValue(Lane(entry), value);
        if (entry == labelEntry) zLabel = value;
        if (entry == topK) return;
        zTop = LargerOf(zTop, value);
        if (logp.GetValue(entry) == logpTop) zFirst = LargerOf(zFirst, value);
    }

    RowPlan plan_;
    uint64_t occupied_ = 0;
};

}  // namespace topk_distill
