// The host side of the operator behind a C interface: what it registered, and its functions on contexts made here.
#include <cstring>

#include "../../../kernels/topk_distill_loss/op_host/topk_distill_loss.cpp"

extern "C" {

// "inputs|outputs|attributes|chips", each a list of names; an attribute ends with the letter of its type.
const char* host_prototype() {
    static std::string text;
    text.clear();
    for (const auto& input : ops::registered.inputs) text += input.name + ",";
    text += "|";
    for (const auto& output : ops::registered.outputs) text += output.name + ",";
    text += "|";
    for (const auto& attribute : ops::registered.attributes) text += attribute.name + ":" + attribute.kind + ",";
    text += "|";
    for (const auto& chip : ops::registered.core.chips) text += chip + ",";
    return text.c_str();
}

// Runs the tiling for logits [rows, vocab] of a type; returns 0 on success. `ids_rows` is the first extent of
// teacher_ids.
int host_tiling(int64_t rows, int64_t vocab, int64_t top_k, int64_t ids_rows, int type, const float* weights,
                int64_t divergence,
                int64_t support, bool gradient, int64_t split, void* tiling, uint64_t* launch) {
    gert::TilingContext context;
    const std::vector<std::vector<int64_t>> shapes = {{rows, vocab}, {rows}, {ids_rows, top_k}, {ids_rows, top_k},
                                                      {rows}, {rows}};
    for (const auto& dims : shapes) {
        context.inputs.emplace_back();
        context.inputs.back().shape.dims = dims;
    }
    context.descriptions.resize(shapes.size());
    context.descriptions[0].type = static_cast<ge::DataType>(type);
    for (int i = 0; i < 3; ++i) context.attributes.floats[i] = weights[i];
    context.attributes.ints = {{3, divergence}, {4, support}, {6, split}};
    context.attributes.bools = {{5, gradient}};
    if (ops::registered.core.tiling(&context) != ge::GRAPH_SUCCESS) return 1;
    std::memcpy(tiling, context.data.data(), context.data.size());
    launch[0] = context.blocks;
    launch[1] = context.schedule;
    launch[2] = context.workspaces[0];
    return 0;
}

// The outputs' shapes, one after the other with their ranks before them, and their types.
void host_infer(int64_t rows, int64_t vocab, int type, int64_t* shapes, int* types) {
    gert::InferShapeContext context;
    context.inputs.resize(6);
    context.inputs[0].dims = {rows, vocab};
    context.outputs.resize(4);
    ops::registered.shapes(&context);
    for (const auto& shape : context.outputs) {
        *shapes++ = static_cast<int64_t>(shape.dims.size());
        for (int64_t dim : shape.dims) *shapes++ = dim;
    }
    gert::InferDataTypeContext kinds;
    kinds.inputs.assign(6, static_cast<ge::DataType>(type));
    kinds.outputs.resize(4);
    ops::registered.kinds(&kinds);
    for (ge::DataType kind : kinds.outputs) *types++ = kind;
}

}  // extern "C"
