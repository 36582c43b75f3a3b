#include "cuda/trt/convert.h"

namespace moh::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

// By number for what older headers do not name.
const char* name_of(DataType type) {
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

std::optional<DType> dtype_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return DType::kFloat32;
    case DataType::kHALF:
      return DType::kFloat16;
    case DataType::kBF16:
      return DType::kBFloat16;
    case DataType::kBOOL:
      return DType::kBool;
    case DataType::kINT64:
      return DType::kInt64;
    default:
      return std::nullopt;
  }
}

void set_rank(int32_t rank, Tensor& tensor) {
  if (rank < 0 || rank > kMaxRank) {
    throw Refusal("a tensor has rank ", rank, "; expected up to ", kMaxRank, ".");
  }
  tensor.rank = rank;
}

// A text may or may not end with 0, and its length count that.
std::string text_of(const nvinfer1::PluginField& field) {
  const std::string text(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  return text.substr(0, text.find('\0'));
}

template <class T>
T number_of(const nvinfer1::PluginField& field) {
  if (field.length != 1) {
    throw Refusal("field ", field.name, " has ", field.length, " numbers; expected 1.");
  }
  return *static_cast<const T*>(field.data);
}

}  // namespace

void set_type(DataType type, Tensor& tensor) {
  tensor.type = name_of(type);
  tensor.dtype = dtype_of(type);
}

void set_shape(const nvinfer1::Dims& dims, Tensor& tensor) {
  set_rank(dims.nbDims, tensor);
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    tensor.sizes[static_cast<size_t>(i)] = dims.d[i] < 0 ? kUnknown : dims.d[i];
  }
}

void set_shape(const nvinfer1::DimsExprs& dims, Tensor& tensor) {
  set_rank(dims.nbDims, tensor);
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    const bool known = dims.d[i]->isConstant();
    tensor.sizes[static_cast<size_t>(i)] = known ? dims.d[i]->getConstantValue() : kUnknown;
  }
}

Field to_field(const nvinfer1::PluginField& field) {
  if (field.data == nullptr) {
    throw Refusal("field ", field.name, " has no data.");
  }
  switch (field.type) {
    case PluginFieldType::kINT32:
      return {field.name, int64_t{number_of<int32_t>(field)}};
    case PluginFieldType::kINT64:
      return {field.name, number_of<int64_t>(field)};
    case PluginFieldType::kFLOAT32:
      return {field.name, double{number_of<float>(field)}};
    case PluginFieldType::kFLOAT64:
      return {field.name, number_of<double>(field)};
    case PluginFieldType::kCHAR:
      return {field.name, text_of(field)};
    default:
      throw Refusal("field ", field.name, " has TensorRT's field type ",
                    static_cast<int>(field.type), "; expected an int, a float or a text.");
  }
}

PluginFieldType to_field_type(AttributeType type) {
  return type == AttributeType::kInt     ? PluginFieldType::kINT32
         : type == AttributeType::kFloat ? PluginFieldType::kFLOAT32
                                         : PluginFieldType::kCHAR;
}

}  // namespace moh::trt
