// The two sweeps over the tiles of a row: the work that grows with V, all of it vector instructions and copies.
#pragma once

#include "row_math.h"
#include "tile_ring.h"

namespace topk_distill {

constexpr uint32_t LOOK_AHEAD = 3;        // tiles loaded or loading, the one in work included
constexpr float BAND_LOW = -20.0f, BAND_HIGH = 40.0f;  // no shift while the first tile's maximum lies here
constexpr float HEADROOM = 20.0f;         // a shift lies above that maximum, since the row's is likely to
constexpr float SUM_LOW = 1e-20f, SUM_HIGH = 1e20f;    // outside, the shift was wrong: digits or range would be lost
constexpr uint32_t SAMPLE = 2048;         // elements of the first tile that the shift is chosen from

template <typename T>
class RowTiles {
  public:
    static constexpr bool WIDE = sizeof(T) == 4;  // fp32 logits: no casts
    Floats partial, found, foundCool;  // a number for every 64 elements of a tile
    LocalTensor<int16_t> signs;                    // 128 sign bits
    TileRing<T> ring;

    __aicore__ inline void Init(const TopkDistillLossTiling& tiling, const LocalTensor<T>& tiles, const Floats& floats,
                                const GlobalTensor<T>& logits, const GlobalTensor<T>& gradients, RowMath* math) {
        tiling_ = tiling;
        floats_ = floats;
        logits_ = logits;
        gradients_ = gradients;
        math_ = math;
        plain_ = tiling.temperature == 1.0f;
        cooling_ = 1.0f / tiling.temperature;
        ring.Init(tiles, tiling.tile, tiling.slots);
        AscendC::Duplicate(signs, static_cast<int16_t>(-32768), 128);
        Then();
    }

    // fp32 work for one tile, which may stay until the second sweep.
    __aicore__ inline Floats Work(uint32_t index) const { return floats_[(index % tiling_.floats) * tiling_.tile]; }

    // ---- the first sweep ----

    // Sums the tail of a row and fills `ids` with the logits taken out of it. `beside` is called as Tick() at every
    // tile: scalar work for later that hides behind the vector unit.
    template <typename Beside>
    __aicore__ inline void Sum(const RowPlan& plan, RowIds& ids, Beside& beside) {
        plan_ = plan;
        ids_ = &ids;
        stays_ = plan.tiles <= ring.Slots();
        if (ahead_ == 0) base_ = NextBase();
        inUb_ = false;
        decided_ = false;
        Sweep<false>(beside);
        Total();
        if (tailColumns > 0 && !(InRange(warm.sum) && InRange(cool.sum))) {
            const float maximum = TrueMaximum();
            warm.shift = cool.shift = maximum;
            Nothing nothing;
            Again();
            Sweep<false>(nothing);
            Total();
        }
        if (tailColumns == 0) warm = cool = {FAR_LOGIT, 0.0f, FAR_LOGIT};
        residents_ = plain_ && tailColumns > 0 ? (plan.tiles < tiling_.floats ? plan.tiles : tiling_.floats) : 0;
    }

    // The largest logit of the tail, exactly. Costs a sweep, and what was kept of the last one.
    __aicore__ inline float TrueMaximum() {
        Nothing nothing;
        Again();
        Sweep<true>(nothing);
        residents_ = 0;
        Reduce<true>(math_->sums, found, math_->fold, tiling_.tile / FLOATS_A_REPEAT);
        return FirstOf(math_->sums);
    }

    TailSum warm, cool;
    uint32_t tailColumns = 0;  // of this core's columns, those that are neither label nor teacher id

    // ---- the second sweep ----

    // Its first tiles are on their way during the K-wide mathematics. `empty`: the gradient outside the ids is 0.
    __aicore__ inline void StartSecond(bool empty) {
        empty_ = empty;
        second_ = stays_ ? base_ : base_ + plan_.tiles;
        ahead_ = 0;
        Advance(LOOK_AHEAD - 1, nullptr);
    }

    // Writes warm * e^(z - shift) + cool * e^((z - shift) / T) over the row; a warm coefficient of sign s is also
    // s * e^logWarm without the shift. Afterwards the first tiles of `next` are on their way.
    __aicore__ inline void WriteGradient(float warmScale, float coolScale, float logWarm, float labelGradient,
                                         const RowPlan* next) {
        const bool folds = !WIDE && plain_ && warm.shift != 0 && logWarm > FAR_LOGIT;
        for (uint32_t job = 0; job <= plan_.tiles; ++job) {
            if (job < plan_.tiles) {
                Compute(job, warmScale, coolScale, folds, logWarm);
                const int32_t id = static_cast<int32_t>(job & 1);
                if (ids_->Any(TileOf(job))) AscendC::SetFlag<HardEvent::V_S>(id);
                else AscendC::SetFlag<HardEvent::V_MTE3>(id);
            }
            if (job > 0) Finish(job - 1, labelGradient);
            Advance(job + LOOK_AHEAD, next);
        }
        Leave();
    }

    // Instead of a second sweep: frees what the first one holds, and sends for the first tiles of `next`.
    __aicore__ inline void SkipSecond(const RowPlan* next) {
        if (stays_) {
            for (uint32_t index = 0; index < plan_.tiles; ++index) ring.Release(SlotOf(index));
        }
        second_ = stays_ ? base_ : base_ + plan_.tiles;
        ahead_ = plan_.tiles;
        Advance(plan_.tiles + LOOK_AHEAD - 1, next);
        Leave();
    }

    // The first tiles of the first row.
    __aicore__ inline void Prefetch(const RowPlan& plan) {
        plan_.tiles = 0;
        second_ = 0;
        ahead_ = 0;
        Advance(LOOK_AHEAD - 1, &plan);
        Leave();
    }

    struct Nothing {
        __aicore__ inline void Tick() {}
    };

  private:
    __aicore__ inline bool InRange(float sum) const { return sum > SUM_LOW && sum < SUM_HIGH; }  // false for NaN
    __aicore__ inline uint32_t SlotOf(uint32_t index) const { return (base_ + index) % ring.Slots(); }
    __aicore__ inline uint32_t NextBase() const { return tiling_.split == 1 ? after_ : 0; }

    // Rereads a row that does not stay in its slots.
    __aicore__ inline void Again() {
        if (stays_) return;
        base_ += plan_.tiles;
        ahead_ = 0;
        inUb_ = false;
    }

    __aicore__ inline void LoadTile(const RowPlan& plan, uint32_t index, uint32_t slot, bool scalar) {
        ring.Load(slot % ring.Slots(), logits_[plan.offset + plan.Begin(index)], plan.Size(index), scalar);
    }

    template <bool maximum, typename Beside>
    __aicore__ inline void Sweep(Beside& beside) {
        if (!inUb_) ids_->own = 0;
        Fill(found, maximum ? -3.4e38f : 0.0f, tiling_.tile / FLOATS_A_REPEAT);
        if (!maximum && !plain_) Fill(foundCool, 0.0f, tiling_.tile / FLOATS_A_REPEAT);
        for (uint32_t index = 0; index < plan_.tiles; ++index) {
            if (!inUb_) {
                for (; ahead_ < plan_.tiles && ahead_ < index + LOOK_AHEAD; ++ahead_) {
                    LoadTile(plan_, ahead_, base_ + ahead_, true);
                }
                ring.Arrive(true);
                if (ids_->Any(index)) {
                    ids_->Gather(ring.At(SlotOf(index)), index);
                    Order<HardEvent::S_V>();
                }
            }
            const uint32_t size = plan_.Size(index);
            if constexpr (maximum) {
                const Floats values = Values(ring.At(SlotOf(index)), Work(0), size);
                Larger(found, found, partial, Reduce64<true>(partial, values, size));
            } else if (plain_) {
                Exponentials(index, size);
            } else {
                WarmAndCool(index, size);
            }
            if (!stays_) ring.Release(SlotOf(index));
            beside.Tick();
        }
        inUb_ = stays_;
        tailColumns = plan_.columns - ids_->own;
    }

    __aicore__ inline void Exponentials(uint32_t index, uint32_t size) {
        const Floats work = Work(index), values = Values(ring.At(SlotOf(index)), work, size);
        if (!decided_) DecideShift(values, size);
        Exponentiate(work, values, -warm.shift, size);
        Plus(found, found, partial, Reduce64<false>(partial, work, size));
    }

    __aicore__ inline void WarmAndCool(uint32_t index, uint32_t size) {
        const Floats hot = Work(0), cold = Work(1), values = Values(ring.At(SlotOf(index)), hot, size);
        if (!decided_) DecideShift(values, size);
        AddScalar(hot, values, -warm.shift, size);
        Scale(cold, hot, cooling_, size);
        Exponential(hot, hot, size);
        Plus(found, found, partial, Reduce64<false>(partial, hot, size));
        Exponential(cold, cold, size);
        Plus(foundCool, foundCool, partial, Reduce64<false>(partial, cold, size));
    }

    // From the beginning of the first tile, which label and teacher ids have left.
    __aicore__ inline void DecideShift(const Floats& values, uint32_t size) {
        Reduce<true>(math_->sums, values, math_->fold, size < SAMPLE ? size : SAMPLE);
        const float maximum = FirstOf(math_->sums), narrow = cooling_ > 1.0f ? tiling_.temperature : 1.0f;
        const bool inBand = maximum > BAND_LOW * narrow && maximum < BAND_HIGH * narrow;
        warm.shift = cool.shift = inBand ? 0.0f : maximum + HEADROOM;
        decided_ = true;
    }

    __aicore__ inline void Total() {
        decided_ = true;
        const Floats &sums = math_->sums, &logs = math_->out;
        Reduce<false>(sums, found, math_->fold, tiling_.tile / FLOATS_A_REPEAT);
        if (!plain_) Reduce<false>(sums[8], foundCool, math_->fold, tiling_.tile / FLOATS_A_REPEAT);
        Logarithm(logs, sums, 1);
        if (!plain_) Logarithm(logs[8], sums[8], 1);
        Order<HardEvent::V_S>();
        warm.sum = sums.GetValue(0);
        warm.logSum = logs.GetValue(0);
        cool.sum = plain_ ? warm.sum : sums.GetValue(8);
        cool.logSum = plain_ ? warm.logSum : logs.GetValue(8);
        Order<HardEvent::S_V>();
    }

    // Jobs of the second sweep: tiles that are kept as exponentials (the last `residents_`) alternate with the others,
    // so that the others' copies have time, and the first kept tile's memory serves as the others' work.
    __aicore__ inline uint32_t TileOf(uint32_t job) const {
        const uint32_t others = plan_.tiles - residents_, pairs = residents_ < others ? residents_ : others;
        if (job < 2 * pairs) return job % 2 == 0 ? others + job / 2 : job / 2;
        return residents_ > others ? others + job - pairs : job - pairs;
    }
    __aicore__ inline bool Resident(uint32_t index) const { return index >= plan_.tiles - residents_; }
    __aicore__ inline bool Loads(uint32_t job) const { return !stays_ && !empty_ && !Resident(TileOf(job)); }
    __aicore__ inline uint32_t SlotOfJob(uint32_t job) const {
        return (stays_ ? base_ + TileOf(job) : second_ + job) % ring.Slots();
    }

    // Issues the loads of jobs up to `limit`; past the row's last job, those of the next row's tiles.
    __aicore__ inline void Advance(uint32_t limit, const RowPlan* next) {
        for (; ahead_ < limit; ++ahead_) {
            if (ahead_ < plan_.tiles) {
                if (Loads(ahead_)) LoadTile(plan_, TileOf(ahead_), SlotOfJob(ahead_), false);
            } else {
                const uint32_t index = ahead_ - plan_.tiles;
                if (!next || index >= next->tiles) return;
                LoadTile(*next, index, second_ + ahead_, true);
            }
        }
    }

    // Hands over to the next row: `ahead_` becomes the count of its tiles that are on their way.
    __aicore__ inline void Leave() {
        after_ = (second_ + plan_.tiles) % ring.Slots();
        ahead_ = ahead_ > plan_.tiles ? ahead_ - plan_.tiles : 0;
        base_ = NextBase();
    }

    __aicore__ inline void Compute(uint32_t job, float warmScale, float coolScale, bool folds, float logWarm) {
        const uint32_t index = TileOf(job), size = plan_.Size(index), slot = SlotOfJob(job);
        const LocalTensor<T> tile = ring.At(slot);
        if (Loads(job)) {
            ring.Arrive(false);
        } else if (!stays_) {
            ring.Occupy(slot);
        }
        if (empty_) {
            AscendC::Duplicate(tile.template ReinterpretCast<int16_t>(), static_cast<int16_t>(0),
                               static_cast<int32_t>(size * sizeof(T) / 2));
            Then();
            return;
        }
        if (Resident(index)) {
            ScaleInto(tile, Work(index), warmScale, size);
            return;
        }
        const Floats work = Work(residents_ > 0 ? plan_.tiles - residents_ : 0), values = Values(tile, work, size);
        if (!plain_) {
            const Floats cold = Work(1);
            AddScalar(work, values, -warm.shift, size);
            Scale(cold, work, cooling_, size);
            Exponential(work, work, size);
            Scale(work, work, warmScale, size);
            Exponential(cold, cold, size);
            AddScaled(work, cold, coolScale, size);
            ScaleInto(tile, work, 1.0f, size);
        } else if (folds) {
            Exponentiate(work, values, logWarm, size);
            Narrow(tile, work, size);
            if (warmScale < 0) Negate(tile, size);
        } else {
            Exponentiate(work, values, -warm.shift, size);
            ScaleInto(tile, work, warmScale, size);
        }
    }

    // work = e^(values + summand); a summand of 0 costs nothing.
    __aicore__ inline void Exponentiate(const Floats& work, const Floats& values, float summand, uint32_t size) {
        if (summand != 0) AddScalar(work, values, summand, size);
        Exponential(work, summand != 0 ? work : values, size);
    }

    // A tile as fp32: in `work`, or where it lies.
    __aicore__ inline Floats Values(const LocalTensor<T>& tile, const Floats& work, uint32_t size) {
        if constexpr (WIDE) {
            return tile;
        } else {
            AscendC::Cast(work, tile, AscendC::RoundMode::CAST_NONE, size);
            Then();
            return work;
        }
    }

    // tile = work * scale, rounded once.
    __aicore__ inline void ScaleInto(const LocalTensor<T>& tile, const Floats& work, float scale, uint32_t size) {
        if constexpr (WIDE) {
            Scale(tile, work, scale, size);
        } else {
            if (scale != 1.0f) Scale(work, work, scale, size);
            Narrow(tile, work, size);
        }
    }

    __aicore__ inline void Narrow(const LocalTensor<T>& tile, const Floats& work, uint32_t size) {
        if constexpr (!WIDE) {
            AscendC::Cast(tile, work, AscendC::RoundMode::CAST_RINT, size);
            Then();
        }
    }

    // Sets the sign bits of a tile of 16-bit numbers, 128 at a time: half the work of a multiplication by -1.
    __aicore__ inline void Negate(const LocalTensor<T>& tile, uint32_t size) {
        const LocalTensor<int16_t> bits = tile.template ReinterpretCast<int16_t>();
        const uint32_t full = size / 128, rest = size % 128;
        const AscendC::BinaryRepeatParams sameSigns(1, 1, 1, 8, 8, 0);
        if (full) AscendC::Or(bits, bits, signs, static_cast<uint64_t>(128), static_cast<uint8_t>(full), sameSigns);
        if (rest) AscendC::Or(bits[full * 128], bits[full * 128], signs, static_cast<uint64_t>(rest), 1, sameSigns);
        Then();
    }

    __aicore__ inline void Finish(uint32_t job, float labelGradient) {
        const uint32_t index = TileOf(job), slot = SlotOfJob(job);
        if (ids_->Any(index)) {
            AscendC::WaitFlag<HardEvent::V_S>(static_cast<int32_t>(job & 1));
            ids_->Scatter(ring.At(slot), index, math_->gradient, labelGradient);
            Order<HardEvent::S_MTE3>();
        } else {
            AscendC::WaitFlag<HardEvent::V_MTE3>(static_cast<int32_t>(job & 1));
        }
        const uint32_t user = job + ring.Slots();
        const bool toVector = !stays_ && user < plan_.tiles && !Loads(user);
        ring.Store(slot, gradients_[plan_.offset + plan_.Begin(index)], plan_.Size(index), toVector);
    }

    TopkDistillLossTiling tiling_;
    Floats floats_;
    GlobalTensor<T> logits_, gradients_;
    RowMath* math_ = nullptr;
    RowIds* ids_ = nullptr;
    RowPlan plan_;
    bool plain_ = true;      // T = 1
    bool stays_ = false;     // all tiles of the row have a slot of their own
    bool inUb_ = false;      // and lie there, label and ids taken out
    bool decided_ = false;   // the shift
    bool empty_ = false;
    float cooling_ = 1;
    uint32_t base_ = 0, second_ = 0, after_ = 0;  // slot of the first tile: first sweep, second sweep, next row
    uint32_t ahead_ = 0;      // tiles, or jobs, whose copies have been issued
    uint32_t residents_ = 0;  // tiles whose exponentials stayed in Work
};

}  // namespace topk_distill
