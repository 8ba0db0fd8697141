// As much of CANN's host interface as op_host uses, so that it compiles and runs without CANN: the names and signatures
// are the toolkit's, the bodies only keep what they are given.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ge {
using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 0xFFFFFFFF;
enum DataType { DT_FLOAT = 0, DT_FLOAT16 = 1, DT_INT32 = 3, DT_BF16 = 27 };
enum Format { FORMAT_ND = 2 };
}  // namespace ge

namespace gert {

class Shape {
  public:
    size_t GetDimNum() const { return dims.size(); }
    int64_t GetDim(size_t index) const { return dims[index]; }
    void SetDimNum(size_t count) { dims.resize(count); }
    void SetDim(size_t index, int64_t value) { dims[index] = value; }
    std::vector<int64_t> dims;
};

struct StorageShape {
    const Shape& GetStorageShape() const { return shape; }
    Shape shape;
};

struct CompileTimeTensorDesc {
    ge::DataType GetDataType() const { return type; }
    ge::DataType type = ge::DT_FLOAT;
};

class RuntimeAttrs {
  public:
    const float* GetFloat(size_t index) const { return &floats.at(index); }
    const int64_t* GetInt(size_t index) const { return &ints.at(index); }
    const bool* GetBool(size_t index) const { return &bools.at(index); }
    std::map<size_t, float> floats;
    std::map<size_t, int64_t> ints;
    std::map<size_t, bool> bools;
};

class TilingContext {
  public:
    const StorageShape* GetInputShape(size_t index) const { return index < inputs.size() ? &inputs[index] : nullptr; }
    const CompileTimeTensorDesc* GetInputDesc(size_t index) const { return &descriptions[index]; }
    const RuntimeAttrs* GetAttrs() const { return &attributes; }
    void* GetPlatformInfo() const { return nullptr; }
    template <typename T>
    T* GetTilingData() {
        data.resize(sizeof(T));
        return reinterpret_cast<T*>(data.data());
    }
    ge::graphStatus SetBlockDim(uint32_t value) { return blocks = value, ge::GRAPH_SUCCESS; }
    ge::graphStatus SetScheduleMode(uint32_t value) { return schedule = value, ge::GRAPH_SUCCESS; }
    size_t* GetWorkspaceSizes(size_t count) { return workspaces.resize(count), workspaces.data(); }

    std::vector<StorageShape> inputs;
    std::vector<CompileTimeTensorDesc> descriptions;
    RuntimeAttrs attributes;
    std::vector<uint8_t> data;
    std::vector<size_t> workspaces;
    uint32_t blocks = 0, schedule = 0;
};

class InferShapeContext {
  public:
    const Shape* GetInputShape(size_t index) const { return &inputs[index]; }
    Shape* GetOutputShape(size_t index) { return &outputs[index]; }
    std::vector<Shape> inputs, outputs;
};

class InferDataTypeContext {
  public:
    ge::DataType GetInputDataType(size_t index) const { return inputs[index]; }
    ge::graphStatus SetOutputDataType(size_t index, ge::DataType type) { return outputs[index] = type,
                                                                        ge::GRAPH_SUCCESS; }
    std::vector<ge::DataType> inputs, outputs;
};

}  // namespace gert

namespace ops {

enum Option { IGNORE, OPTIONAL, REQUIRED };

class OpParamDef {
  public:
    OpParamDef& ParamType(Option value) { return option = value, *this; }
    OpParamDef& DataType(std::vector<ge::DataType> value) { return types = value, *this; }
    OpParamDef& Format(std::vector<ge::Format> value) { return formats = value, *this; }
    std::string name;
    Option option = IGNORE;
    std::vector<ge::DataType> types;
    std::vector<ge::Format> formats;
};

class OpAttrDef {
  public:
    OpAttrDef& AttrType(Option) { return *this; }
    OpAttrDef& Float(float) { return kind = 'f', *this; }
    OpAttrDef& Int(int64_t) { return kind = 'i', *this; }
    OpAttrDef& Bool(bool) { return kind = 'b', *this; }
    std::string name;
    char kind = 0;
};

class OpAICoreDef {
  public:
    OpAICoreDef& SetTiling(ge::graphStatus (*function)(gert::TilingContext*)) { return tiling = function, *this; }
    OpAICoreDef& AddConfig(const char* soc) { return chips.push_back(soc), *this; }
    ge::graphStatus (*tiling)(gert::TilingContext*) = nullptr;
    std::vector<std::string> chips;
};

class OpDef {
  public:
    explicit OpDef(const char* type) : type(type) {}
    OpParamDef& Input(const char* name) { return Named(inputs, name); }
    OpParamDef& Output(const char* name) { return Named(outputs, name); }
    OpAttrDef& Attr(const char* name) { return Named(attributes, name); }
    OpDef& SetInferShape(ge::graphStatus (*function)(gert::InferShapeContext*)) { return shapes = function, *this; }
    OpDef& SetInferDataType(ge::graphStatus (*function)(gert::InferDataTypeContext*)) { return kinds = function,
                                                                                       *this; }
    OpAICoreDef& AICore() { return core; }

    std::string type;
    std::vector<OpParamDef> inputs, outputs;
    std::vector<OpAttrDef> attributes;
    OpAICoreDef core;
    ge::graphStatus (*shapes)(gert::InferShapeContext*) = nullptr;
    ge::graphStatus (*kinds)(gert::InferDataTypeContext*) = nullptr;

  private:
    template <typename T>
    static T& Named(std::vector<T>& list, const char* name) {
        list.emplace_back();
        list.back().name = name;
        return list.back();
    }
};

}  // namespace ops

#define OP_ADD(TYPE) static TYPE registered(#TYPE)
