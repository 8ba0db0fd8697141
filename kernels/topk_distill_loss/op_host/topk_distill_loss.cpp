// The host side of TopkDistillLoss: prototype, shapes, types and tiling. The build generates aclnnTopkDistillLoss from
// it. Contract: kernels/README.md.
#include <cstdio>
#include <vector>

#include "../op_kernel/topk_distill_loss_tiling.h"
#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

namespace {

// Places of inputs, outputs and attributes in the prototype below.
enum Input { LOGITS, TARGET_IDS, TEACHER_IDS, TEACHER_LOGP, TEACHER_TAIL_LOGP, ROW_WEIGHT, INPUTS };
enum Output { LOGITS_REF, CE, KD, DIAGNOSTICS, OUTPUTS };
enum Attribute { CE_WEIGHT, KD_WEIGHT, TEMPERATURE, DIVERGENCE, SUPPORT, WRITE_GRADIENT, CORES_A_ROW };

ge::graphStatus Refuse(const char* reason) {
    std::fprintf(stderr, "TopkDistillLoss: %s\n", reason);
    return ge::GRAPH_FAILED;
}

}  // namespace

namespace optiling {

// nullptr, or which shape does not belong to logits [N, V] and teacher_ids [N, K].
static const char* CheckShapes(gert::TilingContext* context) {
    for (int input = LOGITS; input < INPUTS; ++input) {
        if (context->GetInputShape(input) == nullptr) return "an input has no shape";
    }
    const gert::Shape& logits = context->GetInputShape(LOGITS)->GetStorageShape();
    const gert::Shape& ids = context->GetInputShape(TEACHER_IDS)->GetStorageShape();
    const gert::Shape& logp = context->GetInputShape(TEACHER_LOGP)->GetStorageShape();
    if (logits.GetDimNum() != 2) return "logits must be [N, V]";
    if (ids.GetDimNum() != 2 || ids.GetDim(0) != logits.GetDim(0)) return "teacher_ids must be [N, K]";
    if (logp.GetDimNum() != 2 || logp.GetDim(0) != ids.GetDim(0) || logp.GetDim(1) != ids.GetDim(1)) {
        return "teacher_logp must have the shape of teacher_ids";
    }
    for (int input : {TARGET_IDS, TEACHER_TAIL_LOGP, ROW_WEIGHT}) {
        const gert::Shape& shape = context->GetInputShape(input)->GetStorageShape();
        if (shape.GetDimNum() != 1 || shape.GetDim(0) != logits.GetDim(0)) {
            return "target_ids, teacher_tail_logp and row_weight must be [N]";
        }
    }
    return nullptr;
}

static ge::graphStatus TilingFunc(gert::TilingContext* context) {
    const char* wrong = CheckShapes(context);
    if (wrong != nullptr) return Refuse(wrong);
    const gert::Shape& logits = context->GetInputShape(LOGITS)->GetStorageShape();
    const gert::Shape& ids = context->GetInputShape(TEACHER_IDS)->GetStorageShape();
    const gert::RuntimeAttrs* attributes = context->GetAttrs();
    if (attributes == nullptr) return Refuse("there are no attributes");

    auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
    uint64_t ubBytes = 0;
    platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, ubBytes);

    TopkDistillLossProblem problem = {};
    problem.rows = logits.GetDim(0);
    problem.vocab = logits.GetDim(1);
    problem.topK = ids.GetDim(1);
    problem.logitBytes = context->GetInputDesc(LOGITS)->GetDataType() == ge::DT_FLOAT ? 4 : 2;
    problem.cores = platform.GetCoreNumAiv();
    problem.ubBytes = static_cast<int64_t>(ubBytes);
    problem.ceWeight = *attributes->GetFloat(CE_WEIGHT);
    problem.kdWeight = *attributes->GetFloat(KD_WEIGHT);
    problem.temperature = *attributes->GetFloat(TEMPERATURE);
    problem.divergence = *attributes->GetInt(DIVERGENCE);
    problem.support = *attributes->GetInt(SUPPORT);
    problem.writeGradient = *attributes->GetBool(WRITE_GRADIENT);
    problem.split = *attributes->GetInt(CORES_A_ROW);

    auto* tiling = context->GetTilingData<TopkDistillLossTiling>();
    if (tiling == nullptr) return Refuse("there is no room for the tiling data");
    wrong = topk_distill::MakeTiling(problem, *tiling);
    if (wrong != nullptr) return Refuse(wrong);

    context->SetBlockDim(tiling->cores);
    // Cores that wait for each other must all run at once: the whole launch is scheduled, or none of it.
    if (tiling->split == 2) context->SetScheduleMode(1);
    size_t* workspace = context->GetWorkspaceSizes(1);
    if (workspace == nullptr) return Refuse("there is no room for the workspace size");
    workspace[0] = static_cast<size_t>(platform.GetLibApiWorkSpaceSize() + topk_distill::WorkspaceBytes(*tiling));
    return ge::GRAPH_SUCCESS;
}

}  // namespace optiling

namespace ge {

static graphStatus InferShape(gert::InferShapeContext* context) {
    const gert::Shape* logits = context->GetInputShape(LOGITS);
    if (logits == nullptr || logits->GetDimNum() != 2) return GRAPH_FAILED;
    *context->GetOutputShape(LOGITS_REF) = *logits;
    for (int output : {CE, KD}) {
        gert::Shape* shape = context->GetOutputShape(output);
        shape->SetDimNum(1);
        shape->SetDim(0, logits->GetDim(0));
    }
    gert::Shape* diagnostics = context->GetOutputShape(DIAGNOSTICS);
    diagnostics->SetDimNum(2);
    diagnostics->SetDim(0, 4);
    diagnostics->SetDim(1, logits->GetDim(0));
    return GRAPH_SUCCESS;
}

static graphStatus InferDataType(gert::InferDataTypeContext* context) {
    context->SetOutputDataType(LOGITS_REF, context->GetInputDataType(LOGITS));
    for (int output : {CE, KD, DIAGNOSTICS}) context->SetOutputDataType(output, ge::DT_FLOAT);
    return GRAPH_SUCCESS;
}

}  // namespace ge

namespace ops {

class TopkDistillLoss : public OpDef {
  public:
    explicit TopkDistillLoss(const char* name) : OpDef(name) {
        // The output of the input's name makes it a reference: the gradient overwrites the logits.
        AddInput("logits", {ge::DT_FLOAT, ge::DT_FLOAT16, ge::DT_BF16});
        AddInput("target_ids", {ge::DT_INT32, ge::DT_INT32, ge::DT_INT32});
        AddInput("teacher_ids", {ge::DT_INT32, ge::DT_INT32, ge::DT_INT32});
        AddInput("teacher_logp", {ge::DT_FLOAT, ge::DT_FLOAT, ge::DT_FLOAT});
        AddInput("teacher_tail_logp", {ge::DT_FLOAT, ge::DT_FLOAT, ge::DT_FLOAT});
        AddInput("row_weight", {ge::DT_FLOAT, ge::DT_FLOAT, ge::DT_FLOAT});
        AddOutput("logits", {ge::DT_FLOAT, ge::DT_FLOAT16, ge::DT_BF16});
        AddOutput("ce", {ge::DT_FLOAT, ge::DT_FLOAT, ge::DT_FLOAT});
        AddOutput("kd", {ge::DT_FLOAT, ge::DT_FLOAT, ge::DT_FLOAT});
        AddOutput("diagnostics", {ge::DT_FLOAT, ge::DT_FLOAT, ge::DT_FLOAT});
        this->Attr("ce_weight").AttrType(OPTIONAL).Float(0.0f);
        this->Attr("kd_weight").AttrType(OPTIONAL).Float(1.0f);
        this->Attr("temperature").AttrType(OPTIONAL).Float(1.0f);
        this->Attr("divergence").AttrType(OPTIONAL).Int(0);
        this->Attr("support").AttrType(OPTIONAL).Int(0);
        this->Attr("write_gradient").AttrType(OPTIONAL).Bool(true);
        this->Attr("cores_a_row").AttrType(OPTIONAL).Int(0);
        this->SetInferShape(ge::InferShape).SetInferDataType(ge::InferDataType);
        this->AICore().SetTiling(optiling::TilingFunc).AddConfig("ascend910b").AddConfig("ascend910_93");
    }

  private:
    void AddInput(const char* name, const std::vector<ge::DataType>& types) {
        this->Input(name).ParamType(REQUIRED).DataType(types).Format(Formats());
    }
    void AddOutput(const char* name, const std::vector<ge::DataType>& types) {
        this->Output(name).ParamType(REQUIRED).DataType(types).Format(Formats());
    }
    static std::vector<ge::Format> Formats() { return {ge::FORMAT_ND, ge::FORMAT_ND, ge::FORMAT_ND}; }
};

OP_ADD(TopkDistillLoss);

}  // namespace ops
