// The kernel: cross-entropy plus top-k distillation, loss and gradient of [N, V] logits in one launch.
// What it computes and how it is called: kernels/README.md. Legend: N rows, V columns, K teacher ids a row.
//
// A row takes two sweeps over its tiles with the K-wide mathematics between them. The first sums e^(z - shift) over the
// tail (the row without label and teacher ids, which are taken out of each tile as it arrives); the second writes the
// gradient, one coefficient a row times the same exponential, and the K + 1 other values over it. The shift is 0 while
// the logits of the row's first tile lie in a safe band, which saves an instruction; a sum outside [1e-20, 1e20] sends
// the row back for its true maximum. The last tiles of the first sweep keep their exponentials for the second.
#pragma once

#include "row_tiles.h"

namespace topk_distill {

template <typename T>
class TopkDistillLossKernel {
  public:
    __aicore__ inline void Init(GM_ADDR logits, GM_ADDR targetIds, GM_ADDR teacherIds, GM_ADDR teacherLogp,
                                GM_ADDR tailLogp, GM_ADDR rowWeight, GM_ADDR gradients, GM_ADDR ce, GM_ADDR kd,
                                GM_ADDR diagnostics, GM_ADDR workspace, const TopkDistillLossTiling& tiling,
                                AscendC::TPipe* pipe) {
        tiling_ = tiling;
        const uint64_t rows = tiling.rows, vocab = tiling.vocab, topK = tiling.topK;
        GlobalTensor<T> logitsGm;
        logitsGm.SetGlobalBuffer((__gm__ T*)logits, rows * vocab);
        gradients_.SetGlobalBuffer((__gm__ T*)gradients, rows * vocab);
        targetIds_.SetGlobalBuffer((__gm__ int32_t*)targetIds, rows);
        teacherIds_.SetGlobalBuffer((__gm__ int32_t*)teacherIds, rows * topK);
        teacherLogp_.SetGlobalBuffer((__gm__ float*)teacherLogp, rows * topK);
        tailLogp_.SetGlobalBuffer((__gm__ float*)tailLogp, rows);
        rowWeight_.SetGlobalBuffer((__gm__ float*)rowWeight, rows);
        ce_.SetGlobalBuffer((__gm__ float*)ce, rows);
        kd_.SetGlobalBuffer((__gm__ float*)kd, rows);
        diagnostics_.SetGlobalBuffer((__gm__ float*)diagnostics, 4 * rows);
        const uint32_t block = static_cast<uint32_t>(AscendC::GetBlockIdx());
        team_ = block / tiling.split;
        member_ = block % tiling.split;
        teams_ = tiling.cores / tiling.split;
        messageFloats_ = tiling.lanes + FLOATS_A_REPEAT;
        const uint64_t messages = 2ull * tiling.cores * messageFloats_;
        if (tiling.split == 2) messages_.SetGlobalBuffer((__gm__ float*)workspace, messages);

        pipe->InitBuffer(tileBuffer_, tiling.slots * tiling.tile * sizeof(T));
        pipe->InitBuffer(floatBuffer_, tiling.floats * tiling.tile * sizeof(float));
        pipe->InitBuffer(smallBuffer_, static_cast<uint32_t>(SmallBytes(tiling.lanes, tiling.tile)));
        Carve();
        math_.Init(tiling);
        tiles_.Init(tiling, tileBuffer_.template Get<T>(), floatBuffer_.template Get<float>(), logitsGm, gradients_,
                    &math_);
    }

    __aicore__ inline void Process() {
        if (team_ >= teams_) return;  // more blocks were launched than the tiling asked for
        if (tiling_.split == 2) {
            ProcessShared();
        } else {
            ProcessAlone();
        }
        tiles_.ring.Drain();
        if (outputsBusy_) AscendC::WaitFlag<HardEvent::MTE3_S>(OUTPUTS);
    }

  private:
    static constexpr int32_t OUTPUTS = 0;  // event id: the six numbers of a row are on their way
    static constexpr int32_t LISTS = 4;    // event id: the next row's ids have arrived
    static constexpr uint32_t WORDS = 7;   // of a message between the two cores of a row, before the logits at the ids

    // ---- memory ----

    // The next `count` elements of the small buffer for each tensor.
    template <typename U, typename... Others>
    __aicore__ inline void Take(uint32_t count, LocalTensor<U>& tensor, Others&... others) {
        tensor = smallBuffer_.template GetWithOffset<U>(count, carved_);
        carved_ += count * static_cast<uint32_t>(sizeof(U));
        if constexpr (sizeof...(others) > 0) Take(count, others...);
    }

    __aicore__ inline void Carve() {
        const uint32_t lanes = tiling_.lanes;
        for (RowIds& ids : ids_) {
            ids.topK = tiling_.topK;
            ids.labelLane = static_cast<uint32_t>(RoundUp(tiling_.topK, 8));
            Take(lanes, ids.ids, ids.logp, ids.z, ids.links);
            Take(RowIds::BUCKETS, ids.heads);
            Take(8, ids.label, ids.tail);
        }
        Take(lanes, math_.r, math_.e, math_.eWarm, math_.logq, math_.p, math_.q, math_.slope, math_.part);
        Take(static_cast<uint32_t>(RoundUp(tiling_.tile / 64, 64)), tiles_.partial, tiles_.found, tiles_.foundCool);
        Take(static_cast<uint32_t>(CHUNK * BLOCK_BYTES / sizeof(float)), weights_);
        Take(64, math_.in, math_.out, math_.sums, math_.fold, outputs_, message_);
        Take(128, tiles_.signs);
    }

    // ---- rows ----

    // This team's rows are team, team + teams, ...; `index` counts them. False when there is none.
    __aicore__ inline bool PlanAt(uint32_t index, RowPlan& plan) {
        const uint64_t row = team_ + static_cast<uint64_t>(index) * teams_;
        if (row >= tiling_.rows) return false;
        if (index % CHUNK == 0) LoadWeights(row);
        plan.row = static_cast<uint32_t>(row);
        plan.weight = weights_.GetValue(index % CHUNK * 8);
        plan.first = member_ * tiling_.span;
        plan.columns = tiling_.vocab - plan.first < tiling_.span ? tiling_.vocab - plan.first : tiling_.span;
        plan.offset = row * tiling_.vocab + plan.first;
        plan.tile = tiling_.tile;
        const uint32_t line = static_cast<uint32_t>(512 / sizeof(T)), ahead = static_cast<uint32_t>(plan.offset % line);
        plan.tiles = (plan.columns + ahead + plan.tile - 1) / plan.tile;
        // The first tile is the short one (but not too short to choose a shift from): the last ones are worth keeping.
        const uint32_t slack = plan.tiles * plan.tile - plan.columns - ahead;
        const uint32_t most = plan.tile > SAMPLE ? plan.tile - SAMPLE : 0;
        plan.skew = ahead + (plan.tiles == 1 ? 0 : (slack < most ? slack : most) / line * line);
        return true;
    }

    __aicore__ inline void LoadWeights(uint64_t row) {
        const uint64_t left = (tiling_.rows - row + teams_ - 1) / teams_;
        const uint16_t count = static_cast<uint16_t>(left < CHUNK ? left : CHUNK);
        const uint32_t gap = static_cast<uint32_t>((teams_ - 1) * sizeof(float));
        Order<HardEvent::S_MTE2>();
        const AscendC::DataCopyExtParams strided(count, sizeof(float), gap, 0, 0);
        AscendC::DataCopyPad(weights_, rowWeight_[row], strided, AscendC::DataCopyPadExtParams<float>());
        Order<HardEvent::MTE2_S>();
    }

    // Advances `index` to the next row that counts and plans it; zeroes the outputs of those on the way.
    __aicore__ inline bool NextCounted(uint32_t& index, RowPlan& plan) {
        bool found = false;
        for (; PlanAt(index, plan); ++index) {
            found = plan.weight != 0;
            if (found) break;
            ZeroRow(plan);
        }
        EndZeros();
        return found;
    }

    __aicore__ inline void ZeroRow(const RowPlan& plan) {
        WriteOutputs(plan.row, RowLoss(), 0.0f);
        if (!tiling_.writeGradient) return;
        const Floats work = tiles_.Work(0);
        if (!zeroed_) {
            Fill(work, 0.0f, tiling_.tile);
            Order<HardEvent::V_MTE3>();
            zeroed_ = true;
        }
        const LocalTensor<T> zeros = work.template ReinterpretCast<T>();
        const uint32_t most = tiling_.tile * static_cast<uint32_t>(sizeof(float) / sizeof(T));
        for (uint32_t begin = 0; begin < plan.columns; begin += most) {
            const uint32_t count = plan.columns - begin < most ? plan.columns - begin : most;
            CopyOut(gradients_[plan.offset + begin], zeros, count);
        }
    }

    // The zeros lie where the vector unit works: it waits until they have been copied out.
    __aicore__ inline void EndZeros() {
        if (zeroed_) Order<HardEvent::MTE3_V>();
        zeroed_ = false;
    }

    // Sends for the row's ids and what belongs to them.
    __aicore__ inline void LoadIds(const RowPlan& plan, RowIds& ids) {
        const uint32_t topK = tiling_.topK;
        const uint8_t padding = static_cast<uint8_t>(ids.labelLane - topK);
        const uint64_t first = static_cast<uint64_t>(plan.row) * topK;
        Order<HardEvent::S_MTE2>();
        Order<HardEvent::V_MTE2>();
        CopyIn(ids.ids, teacherIds_[first], topK);
        const AscendC::DataCopyExtParams all(1, static_cast<uint32_t>(topK * sizeof(float)), 0, 0, 0);
        const AscendC::DataCopyPadExtParams<float> far(padding > 0, 0, padding, FAR_LOGIT);
        AscendC::DataCopyPad(ids.logp, teacherLogp_[first], all, far);
        CopyIn(ids.label, targetIds_[plan.row], 1);
        CopyIn(ids.tail, tailLogp_[plan.row], 1);
        AscendC::SetFlag<HardEvent::MTE2_S>(LISTS);
        AscendC::SetFlag<HardEvent::MTE2_V>(LISTS);
        Fill(ids.z, FAR_LOGIT, ids.labelLane + 8);
        AscendC::SetFlag<HardEvent::V_S>(LISTS);
    }

    __aicore__ inline static void StartIds(const RowPlan& plan, RowIds& ids) {
        AscendC::WaitFlag<HardEvent::MTE2_S>(LISTS);
        AscendC::WaitFlag<HardEvent::MTE2_V>(LISTS);
        AscendC::WaitFlag<HardEvent::V_S>(LISTS);
        ids.Start(plan);
    }

    // A row for which nothing has been prepared.
    __aicore__ inline void BeginRow(const RowPlan& plan, RowIds& ids) {
        LoadIds(plan, ids);
        tiles_.Prefetch(plan);
        StartIds(plan, ids);
        ids.Build(tiling_.topK + 1);
    }

    // Lists the next row's ids, a part of them at every tile of this row but the first.
    struct NextLists {
        const RowPlan* plan;
        RowIds* ids;
        uint32_t step, ticks;

        __aicore__ inline void Tick() {
            if (!plan || ticks++ == 0) return;
            if (ticks == 2) StartIds(*plan, *ids);
            ids->Build(step);
        }
        __aicore__ inline void Finish() {
            if (!plan) return;
            if (ticks < 2) StartIds(*plan, *ids);
            ids->Build(ids->topK + 1);
        }
    };

    // One core a row. While a row is summed, the ids of the next one are loaded and listed; while its gradient is
    // written, the next one's first tiles arrive.
    __aicore__ inline void ProcessAlone() {
        uint32_t index = 0, turn = 0;
        RowPlan plan, next;
        if (!NextCounted(index, plan)) return;
        BeginRow(plan, ids_[0]);
        for (bool more = true; more; turn ^= 1) {
            ++index;
            more = NextCounted(index, next);
            if (more) LoadIds(next, ids_[turn ^ 1]);
            NextLists lists{more ? &next : nullptr, &ids_[turn ^ 1], tiling_.topK / plan.tiles + 1, 0};
            RowIds& ids = ids_[turn];
            tiles_.Sum(plan, ids, lists);
            lists.Finish();
            ProcessSummed(plan, ids, more ? &next : nullptr);
            plan = next;
        }
    }

    __aicore__ inline void ProcessSummed(const RowPlan& plan, RowIds& ids, const RowPlan* next) {
        const bool hasTail = tiles_.tailColumns > 0;
        const Agreement sure = Agrees(ids, tiles_.warm, tiles_.tailColumns);
        bool agrees = sure == Agreement::YES;
        if (sure == Agreement::UNKNOWN) agrees = ids.zFirst >= tiles_.TrueMaximum();
        if (tiling_.writeGradient) {
            tiles_.StartSecond(NoGradientOutside(hasTail));
        } else {
            tiles_.SkipSecond(next);
        }
        WriteOutputs(plan.row, math_.Measure(ids, tiles_.warm, tiles_.cool, hasTail, tiling_.vocab), agrees);
        if (tiling_.writeGradient) WriteGradient(plan, ids, tiles_.warm, 1.0f, next);
    }

    __aicore__ inline bool NoGradientOutside(bool hasTail) const {
        return !hasTail || (tiling_.support == 1 && tiling_.ceWeight == 0);
    }

    // `total` is the whole row's tail; `share` turns this core's exponentials into the total's.
    __aicore__ inline void WriteGradient(const RowPlan& plan, const RowIds& ids, const TailSum& total, float share,
                                         const RowPlan* next) {
        const RowGradient gradient = math_.Differentiate(ids, plan.weight);
        float logWarm = FAR_LOGIT;
        if (tiles_.warm.shift != 0 && gradient.warm != 0) {
            logWarm = math_.LogOf(gradient.warm) - total.shift - total.logSum;
        }
        const bool hasTail = total.sum > 0;
        const float warmScale = hasTail ? gradient.warm / total.sum * share : 0.0f;
        const float coolScale = hasTail ? gradient.cool / tiles_.cool.sum : 0.0f;
        tiles_.WriteGradient(warmScale, coolScale, logWarm, gradient.label, next);
    }

    // ---- top-1 agreement: the largest logit among the teacher's first ids is the largest of the row ----

    enum class Agreement : uint8_t { NO, YES, UNKNOWN };

    // Known without the tail's maximum when another known logit is larger, when the first id outweighs the whole tail,
    // or when it weighs less than the tail's mean.
    __aicore__ inline Agreement Agrees(const RowIds& ids, const TailSum& tail, uint32_t tailColumns) {
        if (ids.valid == 0 || ids.zFirst < LargerOf(ids.zTop, ids.zLabel)) return Agreement::NO;
        if (tailColumns == 0) return Agreement::YES;
        math_.in.SetValue(0, ids.zFirst - tail.shift);
        Order<HardEvent::S_V>();
        Exponential(math_.out, math_.in, 1);
        const float first = FirstOf(math_.out);
        if (first > tail.sum * 1.001f) return Agreement::YES;
        return first * static_cast<float>(tailColumns) < tail.sum * 0.999f ? Agreement::NO : Agreement::UNKNOWN;
    }

    // ---- outputs ----

    __aicore__ inline void WriteOutputs(uint32_t row, const RowLoss& loss, float agreement) {
        if (member_ != 0) return;
        if (outputsBusy_) AscendC::WaitFlag<HardEvent::MTE3_S>(OUTPUTS);
        const float values[] = {loss.ce, loss.kd, loss.entropy, loss.teacherMass, loss.studentMass, agreement};
        for (uint32_t i = 0; i < 6; ++i) outputs_.SetValue(8 * i, values[i]);
        Order<HardEvent::S_MTE3>();
        const uint32_t gap = static_cast<uint32_t>((tiling_.rows - 1) * sizeof(float));
        CopyOut(ce_[row], outputs_, 1);
        CopyOut(kd_[row], outputs_[8], 1);
        AscendC::DataCopyPad(diagnostics_[row], outputs_[16], AscendC::DataCopyExtParams(4, sizeof(float), 0, gap, 0));
        AscendC::SetFlag<HardEvent::MTE3_S>(OUTPUTS);
        outputsBusy_ = true;
    }

    // ---- two cores a row ----

    // Both cores of a team sum their columns, tell each other what they found, do the same K-wide mathematics, and
    // write the gradient of their columns, whose logits never left the unified buffer. All cores meet once a round.
    __aicore__ inline void ProcessShared() {
        const uint32_t rounds = (tiling_.rows + teams_ - 1) / teams_;
        RowIds& ids = ids_[0];
        typename RowTiles<T>::Nothing nothing;
        for (uint32_t word = 0; word < WORDS; ++word) message_.SetValue(word, 0.0f);
        for (uint32_t index = 0; index <= rounds; ++index) {  // the last round only settles agreements
            RowPlan plan;
            const bool exists = PlanAt(index, plan), counts = exists && plan.weight != 0;
            if (counts) {
                BeginRow(plan, ids);
                tiles_.Sum(plan, ids, nothing);
            }
            const uint64_t round = static_cast<uint64_t>(index & 1) * tiling_.cores;
            const uint64_t block = static_cast<uint64_t>(team_) * 2;
            Send((round + block + member_) * messageFloats_, counts, ids);
            AscendC::SyncAll();
            if (counts || unsettled_) Receive((round + block + 1 - member_) * messageFloats_, counts, ids);
            if (unsettled_) Settle();
            if (counts) FinishShared(plan, ids);
            if (exists && !counts) {
                ZeroRow(plan);
                EndZeros();
            }
        }
    }

    __aicore__ inline void Send(uint64_t at, bool counts, const RowIds& ids) {
        if (counts) {
            const float values[] = {tiles_.warm.shift, tiles_.warm.sum, static_cast<float>(tiles_.tailColumns),
                                    ids.zTop, ids.zFirst, ids.zLabel};
            for (uint32_t i = 0; i < 6; ++i) message_.SetValue(i, values[i]);
        }
        message_.SetValue(6, tailMaximum_);
        Order<HardEvent::S_MTE3>();
        CopyOut(messages_[at], message_, WORDS);
        if (counts) CopyOut(messages_[at + FLOATS_A_REPEAT], ids.z, ids.labelLane + 8);
    }

    // The other core's message into math_.e, its logits at the ids into math_.r.
    __aicore__ inline void Receive(uint64_t at, bool counts, const RowIds& ids) {
        Order<HardEvent::S_MTE2>();
        Order<HardEvent::V_MTE2>();
        CopyIn(math_.e, messages_[at], WORDS);
        if (counts) CopyIn(math_.r, messages_[at + FLOATS_A_REPEAT], ids.labelLane + 8);
        Order<HardEvent::MTE2_S>();
        Order<HardEvent::MTE2_V>();
    }

    // The agreement of the last row, which waited for both maxima.
    __aicore__ inline void Settle() {
        unsettled_ = false;
        if (member_ != 0) return;
        const bool agrees = unsettledFirst_ >= LargerOf(tailMaximum_, math_.e.GetValue(6));
        if (outputsBusy_) AscendC::WaitFlag<HardEvent::MTE3_S>(OUTPUTS);
        outputs_.SetValue(48, static_cast<float>(agrees));
        Order<HardEvent::S_MTE3>();
        CopyOut(diagnostics_[3ull * tiling_.rows + unsettledRow_], outputs_[48], 1);
        AscendC::SetFlag<HardEvent::MTE3_S>(OUTPUTS);
        outputsBusy_ = true;
    }

    __aicore__ inline void FinishShared(const RowPlan& plan, RowIds& ids) {
        TailSum theirs;
        theirs.shift = math_.e.GetValue(0);
        theirs.sum = math_.e.GetValue(1);
        const uint32_t tailColumns = tiles_.tailColumns + static_cast<uint32_t>(math_.e.GetValue(2));
        ids.zTop = LargerOf(ids.zTop, math_.e.GetValue(3));
        ids.zFirst = LargerOf(ids.zFirst, math_.e.GetValue(4));
        ids.zLabel = LargerOf(ids.zLabel, math_.e.GetValue(5));
        Order<HardEvent::S_V>();
        Larger(ids.z, ids.z, math_.r, ids.labelLane + 8);
        Order<HardEvent::V_S>();
        float share = 1.0f;
        const TailSum mine = tiles_.warm;
        const TailSum total = member_ == 0 ? Together(mine, theirs, share) : Together(theirs, mine, share);
        const Agreement sure = Agrees(ids, total, tailColumns);
        if (sure == Agreement::UNKNOWN) {
            tailMaximum_ = tiles_.tailColumns > 0 ? tiles_.TrueMaximum() : FAR_LOGIT;
            unsettled_ = true;
            unsettledRow_ = plan.row;
            unsettledFirst_ = ids.zFirst;
        }
        tiles_.StartSecond(NoGradientOutside(tailColumns > 0));
        const RowLoss loss = math_.Measure(ids, total, total, tailColumns > 0, tiling_.vocab);
        WriteOutputs(plan.row, loss, sure == Agreement::YES);
        WriteGradient(plan, ids, total, share, nullptr);
    }

    // Two tails as one; `share` becomes the factor from this core's exponentials to the total's.
    __aicore__ inline TailSum Together(const TailSum& a, const TailSum& b, float& share) {
        TailSum total;
        total.shift = LargerOf(a.shift, b.shift);
        total.sum = a.sum + b.sum;
        if (a.shift != b.shift) {
            math_.in.SetValue(0, a.shift - total.shift);
            math_.in.SetValue(1, b.shift - total.shift);
            Order<HardEvent::S_V>();
            Exponential(math_.out, math_.in, 2);
            Order<HardEvent::V_S>();
            const float ofA = math_.out.GetValue(0), ofB = math_.out.GetValue(1);
            Order<HardEvent::S_V>();
            total.sum = a.sum * ofA + b.sum * ofB;
            share = member_ == 0 ? ofA : ofB;
        }
        total.logSum = math_.LogOf(total.sum);
        return total;
    }

    TopkDistillLossTiling tiling_;
    GlobalTensor<T> gradients_;
    GlobalTensor<int32_t> targetIds_, teacherIds_;
    GlobalTensor<float> teacherLogp_, tailLogp_, rowWeight_, ce_, kd_, diagnostics_, messages_;
    AscendC::TBuf<AscendC::TPosition::VECIN> tileBuffer_, smallBuffer_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> floatBuffer_;
    Floats weights_, outputs_, message_;
    RowIds ids_[2];
    RowMath math_;
    RowTiles<T> tiles_;
    uint32_t team_ = 0, member_ = 0, teams_ = 0, messageFloats_ = 0, carved_ = 0;
    bool zeroed_ = false, outputsBusy_ = false;
    bool unsettled_ = false;  // two cores a row: the last row's agreement waits for the other core's maximum
    uint32_t unsettledRow_ = 0;
    float unsettledFirst_ = 0, tailMaximum_ = 0;
};

}  // namespace topk_distill
