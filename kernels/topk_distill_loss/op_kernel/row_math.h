// From what the first pass found of a row to its losses, its diagnostics and its gradient: K-wide work in fp32.
// The mathematics is that of mindspore_impl/losses/oracle.py. The row is split into the teacher's ids, the label when
// it is none of them, and the tail, which was summed alone: no mass is ever 1 - sum.
#pragma once

#include "row_ids.h"

namespace topk_distill {

// sum = the sum of e^((z - shift) / T) over the tail; `logSum` its logarithm.
struct TailSum {
    float shift = 0, sum = 0, logSum = 0;
};

struct RowLoss {
    float ce = 0, kd = 0, entropy = 0, teacherMass = 0, studentMass = 0;
};

// Outside the ids the gradient is warm * e^(z - shift) / sum + cool * e^((z - shift) / T) / coolSum; T = 1: warm alone.
struct RowGradient {
    float warm = 0, cool = 0, label = 0;
};

class RowMath {
  public:
    Floats r, e, eWarm, logq, p, q, slope, part;  // K-wide
    Floats in, out, sums, fold;                   // scratch: scalars to and from the vector unit
    Floats gradient;                              // of the ids, after Differentiate

    __aicore__ inline void Init(const TopkDistillLossTiling& tiling) {
        tiling_ = tiling;
        wide_ = static_cast<uint32_t>(RoundUp(tiling.topK, 8));
        gradient = part;
    }

    // `hasTail`: some column is neither label nor teacher id. `warm` at T = 1 and `cool` at T are the same when T = 1.
    __aicore__ inline RowLoss Measure(RowIds& ids, const TailSum& warm, const TailSum& cool, bool hasTail,
                                      uint32_t vocab) {
        hasTail_ = hasTail;
        rest_ = ids.valid < vocab;
        bucket_ = rest_ && tiling_.support == 0;
        tailLogp_ = ids.tail.GetValue(0);
        ids.z.SetValue(wide_, ids.zLabel);
        Order<HardEvent::S_V>();
        RowLoss loss;
        Normalise(ids, warm, 1.0f, eWarm, warm_);
        loss.ce = warm_.ce;
        cool_ = warm_;
        eCool_ = eWarm;
        if (tiling_.temperature != 1.0f) {
            Normalise(ids, cool, 1.0f / tiling_.temperature, e, cool_);
            eCool_ = e;
        }
        loss.studentMass = cool_.inSupport / cool_.norm;
        Compare(ids, loss);
        return loss;
    }

    // The gradient with respect to the logits, after Measure.
    __aicore__ inline RowGradient Differentiate(const RowIds& ids, float weight) {
        const float a = weight * tiling_.ceWeight, b = weight * tiling_.kdWeight * tiling_.temperature;
        const bool renormalised = tiling_.support == 1;
        const float fall = renormalised ? 0.0f : -b * slopeSum_;  // of the divergence, a unit of q
        const float bucketSlope = bucket_ ? b * bucketSlope_ : 0.0f;

        Scale(gradient, eCool_, fall / cool_.norm, wide_);
        AddScaled(gradient, eWarm, a / warm_.norm, wide_);
        AddScaled(gradient, slope, b, wide_);
        if (renormalised) AddScaled(gradient, q, -b * slopeSum_, wide_);

        RowGradient result;
        // The label: its cross-entropy part is minus the mass of everything else, never q - 1.
        result.label = -a * (warm_.others / warm_.norm);
        if (ids.LabelInside()) {
            const float mass = renormalised ? q.GetValue(ids.labelEntry) : cool_.label / cool_.norm;
            result.label += b * slope.GetValue(ids.labelEntry) - b * slopeSum_ * mass;
        } else {
            result.label += fall * (cool_.label / cool_.norm) + bucketSlope * cool_.labelShare;
        }
        if (hasTail_) {
            result.warm = a * (warm_.tail / warm_.norm);
            result.cool = fall * (cool_.tail / cool_.norm) + bucketSlope * cool_.tailShare;
        }
        if (tiling_.temperature == 1.0f) {
            result.warm += result.cool;
            result.cool = 0;
        }
        return result;
    }

    // log|x| by the vector unit.
    __aicore__ inline float LogOf(float x) {
        in.SetValue(0, LargerOf(x < 0 ? -x : x, SMALLEST));
        Order<HardEvent::S_V>();
        Logarithm(out, in, 1);
        return FirstOf(out);
    }

  private:
    // Masses relative to e^M, where M is about the largest logarithm among ids, label and tail.
    struct Masses {
        float norm = 1, logNorm = 0;        // of everything, and its logarithm
        float label = 0, tail = 0;          // the label's mass, the tail's
        float others = 0, inSupport = 0;    // all but the label's; the ids' (with the label, if it is one)
        float labelShare = 0, tailShare = 0;  // of the bucket "everything but the ids"; they sum to one
        float logBucket = 0;                // the bucket's logarithm, already divided by norm
        float ce = 0;
    };

    // The bits of a 64-lane repeat that starts at `first`: ids, but not the label.
    __aicore__ inline uint64_t OtherIds(const RowIds& ids, uint32_t first) const {
        const uint32_t count = wide_ - first < 64 ? wide_ - first : 64;
        uint64_t mask = count == 64 ? ~0ull : (1ull << count) - 1;
        if (ids.LabelInside() && ids.labelEntry - first < 64) mask &= ~(1ull << (ids.labelEntry - first));
        return mask;
    }

    // dst = src * cooling + summand; a cooling of 1 costs nothing.
    __aicore__ inline void Cool(const Floats& dst, const Floats& src, float cooling, float summand, uint32_t count) {
        if (cooling != 1.0f) Scale(dst, src, cooling, count);
        AddScalar(dst, cooling != 1.0f ? dst : src, summand, count);
    }

    __aicore__ inline void Normalise(const RowIds& ids, const TailSum& tail, float cooling, const Floats& mass,
                                     Masses& m) {
        const float shift = tail.shift * cooling, labelZ = ids.zLabel * cooling;
        float top = LargerOf(ids.zTop, ids.zLabel) * cooling;
        if (hasTail_) top = LargerOf(top, shift + tail.logSum);
        // Within 80 the tail's mass is sum * e^(shift - top), exact to the last digits; beyond, e^ would underflow.
        const bool near = top - shift <= 80.0f;
        const float logTail = hasTail_ ? (shift - top) + tail.logSum : FAR_LOGIT;
        const float logLabel = labelZ - top, lone = ids.LabelInside() ? FAR_LOGIT : logLabel;
        const float bucketTop = LargerOf(logTail, lone);
        in.SetValue(0, hasTail_ ? (near ? shift - top : logTail) : FAR_LOGIT);
        in.SetValue(1, logTail - bucketTop);
        in.SetValue(2, lone - bucketTop);
        in.SetValue(3, tailLogp_);
        Order<HardEvent::S_V>();
        Cool(r, ids.z, cooling, -top, wide_ + 8);
        Exponential(mass, r, wide_ + 8);
        Exponential(out, in, 4);
        for (uint32_t first = 0; first < wide_; first += FLOATS_A_REPEAT) {
            const uint64_t mask[2] = {OtherIds(ids, first), 0};
            if (mask[0] == 0) {
                AscendC::Duplicate(fold[first / 8], 0.0f, 1);
            } else {
                AscendC::WholeReduceSum<float>(fold[first / 8], mass[first], mask, 1, 1, 1, 8);
            }
        }
        Then();
        if (wide_ > FLOATS_A_REPEAT) Plus(fold, fold, fold[8], 1);
        Order<HardEvent::V_S>();

        const float supportButLabel = fold.GetValue(0);
        m.label = mass.GetValue(wide_);
        m.tail = hasTail_ ? out.GetValue(0) * (near ? tail.sum : 1.0f) : 0.0f;
        m.others = supportButLabel + m.tail;
        m.norm = m.others + m.label;
        m.inSupport = supportButLabel + (ids.LabelInside() ? m.label : 0.0f);
        const float shares = out.GetValue(1) + out.GetValue(2);
        m.tailShare = out.GetValue(1) / shares;
        m.labelShare = out.GetValue(2) / shares;
        tailP_ = out.GetValue(3);
        const float bucket = m.tail + (ids.LabelInside() ? 0.0f : m.label);
        const bool confident = m.others < m.label;
        const float ratio = confident ? m.others / m.label : 0.0f, onePlus = 1.0f + ratio;
        in.SetValue(0, m.norm);
        in.SetValue(1, onePlus);
        in.SetValue(2, shares);
        in.SetValue(3, LargerOf(bucket, SMALLEST));
        Order<HardEvent::S_V>();
        Logarithm(out, in, 4);
        Order<HardEvent::V_S>();

        m.logNorm = out.GetValue(0);
        m.logBucket = (bucket > 1e-30f ? out.GetValue(3) : bucketTop + out.GetValue(2)) - m.logNorm;
        // log(1 + ratio) without losing the ratio's digits in the sum.
        const float log1p = onePlus == 1.0f ? ratio : out.GetValue(1) * (ratio / (onePlus - 1.0f));
        m.ce = confident ? log1p : m.logNorm - logLabel;
        Order<HardEvent::S_V>();
    }

    // The divergence between both sides' buckets, its slope by log q, and the teacher's diagnostics.
    __aicore__ inline void Compare(RowIds& ids, RowLoss& loss) {
        const Floats& logp = ids.logp;
        Exponential(p, logp, wide_);
        Reduce<false>(sums, p, fold, wide_);
        Multiply(part, p, logp, wide_);
        Reduce<false>(sums[8], part, fold, wide_);
        if (tiling_.support == 1) {
            Renormalise(ids);
        } else {
            AddScalar(logq, r, -cool_.logNorm, wide_);
        }
        // The bucket of the rest, or two empty masses; the block's other lanes stay empty.
        Fill(logp[wide_], FAR_LOGIT, 8);
        Fill(logq[wide_], FAR_LOGIT, 8);
        Order<HardEvent::V_S>();
        if (bucket_) {
            logp.SetValue(wide_, tailLogp_);
            logq.SetValue(wide_, cool_.logBucket);
        }
        Order<HardEvent::S_V>();
        const uint32_t count = wide_ + 8;
        Exponential(p, logp, count);
        Exponential(q, logq, count);
        Diverge(logp, count);
        Reduce<false>(sums[16], part, fold, count);
        Reduce<false>(sums[24], slope, fold, count);
        Order<HardEvent::V_S>();
        loss.teacherMass = sums.GetValue(0);
        loss.entropy = -sums.GetValue(8) - (rest_ ? tailP_ * tailLogp_ : 0.0f);
        const bool some = ids.valid > 0 || tiling_.support == 0;
        loss.kd = some ? tiling_.temperature * tiling_.temperature * sums.GetValue(16) : 0.0f;
        slopeSum_ = some ? sums.GetValue(24) : 0.0f;
        bucketSlope_ = slope.GetValue(wide_);
        Order<HardEvent::S_V>();
    }

    // logp and logq scaled to sum to one on the ids, each from its own maximum.
    __aicore__ inline void Renormalise(RowIds& ids) {
        const float cooling = 1.0f / tiling_.temperature;
        Cool(logq, ids.z, cooling, -ids.zTop * cooling, wide_);
        AddScalar(ids.logp, ids.logp, -ids.logpTop, wide_);
        Exponential(q, logq, wide_);
        Reduce<false>(sums[16], q, fold, wide_);
        Exponential(p, ids.logp, wide_);
        Reduce<false>(sums[24], p, fold, wide_);
        Logarithm(out, sums[16], 1);
        Logarithm(out[8], sums[24], 1);
        Order<HardEvent::V_S>();
        const float logQ = out.GetValue(0), logP = out.GetValue(8);
        Order<HardEvent::S_V>();
        AddScalar(logq, logq, -logQ, wide_);
        AddScalar(ids.logp, ids.logp, -logP, wide_);
    }

    // part = each bucket's share of D, slope = dD / d(log q) of each. Needs p, q, logp, logq.
    __aicore__ inline void Diverge(const Floats& logp, uint32_t count) {
        if (tiling_.divergence == 0) {
            Subtract(part, logp, logq, count);
            Multiply(part, p, part, count);
            Scale(slope, p, -1.0f, count);
        } else if (tiling_.divergence == 1) {
            Subtract(slope, logq, logp, count);
            Multiply(part, q, slope, count);
            // A constant times q in the slope changes no gradient, since the q sum to one; around D itself, slopes are
            // small where the student is sure, and the gradient there is no difference of large numbers.
            Reduce<false>(sums[16], part, fold, count);
            AddScalar(slope, slope, -FirstOf(sums[16]), count);
            Multiply(slope, q, slope, count);
        } else {
            Plus(part, p, q, count);
            Scale(part, part, 0.5f, count);
            AtLeast(part, part, SMALLEST, count);
            Logarithm(part, part, count);       // log m
            Subtract(slope, logq, part, count);
            Multiply(slope, q, slope, count);
            Scale(slope, slope, 0.5f, count);   // half of q (log q - log m)
            Subtract(part, logp, part, count);
            Multiply(part, p, part, count);
            Scale(part, part, 0.5f, count);
            Plus(part, part, slope, count);
        }
    }

    TopkDistillLossTiling tiling_;
    Floats eCool_;
    Masses warm_, cool_;
    uint32_t wide_ = 0;
    bool hasTail_ = false, rest_ = false, bucket_ = false;
    float tailLogp_ = 0, tailP_ = 0, slopeSum_ = 0, bucketSlope_ = 0;
};

}  // namespace topk_distill
