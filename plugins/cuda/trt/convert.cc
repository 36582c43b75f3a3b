#include "cuda/trt/convert.h"

namespace moh::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

// By number for what older headers do not name.
const char* NameOf(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kBOOL:
      return "bool";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    case DataType::kFP8:
      return "float8";
    default:
      return "of another type";
  }
}

std::optional<DType> DTypeOf(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return DType::kFloat32;
    case DataType::kHALF:
      return DType::kFloat16;
    case DataType::kBF16:
      return DType::kBFloat16;
    case DataType::kBOOL:
      return DType::kBool;
    default:
      return std::nullopt;
  }
}

void SetRank(int32_t rank, Tensor& tensor) {
  if (rank < 0 || rank > kMaxRank) {
    throw Refusal("a tensor has rank ", rank, "; expected up to ", kMaxRank, ".");
  }
  tensor.rank = rank;
}

// A text may or may not end with 0, and its length count that.
std::string TextOf(const nvinfer1::PluginField& field) {
  const std::string text(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  return text.substr(0, text.find('\0'));
}

template <class T>
T NumberOf(const nvinfer1::PluginField& field) {
  if (field.length != 1) {
    throw Refusal("field ", field.name, " has ", field.length, " numbers; expected 1.");
  }
  return *static_cast<const T*>(field.data);
}

}  // namespace

void SetType(DataType type, Tensor& tensor) {
  tensor.type = NameOf(type);
  tensor.dtype = DTypeOf(type);
}

void SetShape(const nvinfer1::Dims& dims, Tensor& tensor) {
  SetRank(dims.nbDims, tensor);
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    tensor.sizes[static_cast<size_t>(i)] = dims.d[i] < 0 ? kUnknown : dims.d[i];
  }
}

void SetShape(const nvinfer1::DimsExprs& dims, Tensor& tensor) {
  SetRank(dims.nbDims, tensor);
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    const bool known = dims.d[i]->isConstant();
    tensor.sizes[static_cast<size_t>(i)] = known ? dims.d[i]->getConstantValue() : kUnknown;
  }
}

Field ToField(const nvinfer1::PluginField& field) {
  if (field.data == nullptr) {
    throw Refusal("field ", field.name, " has no data.");
  }
  switch (field.type) {
    case PluginFieldType::kINT32:
      return {field.name, int64_t{NumberOf<int32_t>(field)}};
    case PluginFieldType::kINT64:
      return {field.name, NumberOf<int64_t>(field)};
    case PluginFieldType::kFLOAT32:
      return {field.name, double{NumberOf<float>(field)}};
    case PluginFieldType::kFLOAT64:
      return {field.name, NumberOf<double>(field)};
    case PluginFieldType::kCHAR:
      return {field.name, TextOf(field)};
    default:
      throw Refusal("field ", field.name, " has TensorRT's field type ",
                    static_cast<int>(field.type), "; expected an int, a float or a text.");
  }
}

PluginFieldType ToFieldType(AttributeType type) {
  return type == AttributeType::kInt     ? PluginFieldType::kINT32
         : type == AttributeType::kFloat ? PluginFieldType::kFLOAT32
                                         : PluginFieldType::kCHAR;
}

}  // namespace moh::trt
