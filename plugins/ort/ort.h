// ONNX Runtime's C++ API, used through the function table that the runtime hands over at
// registration.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "moh/contract.h"
#include "moh/tensor.h"
#include "nodes/node.h"

namespace moh::ort {

// The oldest version that has all that is used here (KernelContext_ParallelFor is the youngest
// part). A runtime gives a library the table of any version up to its own.
constexpr uint32_t kApiVersion = 17;

constexpr ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    case DType::kFloat32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  }
}

template <typename... Parts>
Ort::Status invalid_argument(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return Ort::Status(text.str().c_str(), ORT_INVALID_ARGUMENT);
}

// Runs `call`, which returns an Ort::Status, and makes a status of what it throws: no exception may
// cross the C interface.
template <typename Call>
OrtStatusPtr as_status(const char* op, const Call& call) {
  try {
    return call().release();
  } catch (const std::bad_alloc&) {
    return Ort::Status((std::string(op) + ": out of memory.").c_str(), ORT_FAIL).release();
  } catch (const std::exception& error) {
    return Ort::Status((std::string(op) + ": " + error.what()).c_str(), ORT_FAIL).release();
  }
}

using node::kMost;
using node::Shape;
using node::shape_text;

// The value of an attribute; empty where the node leaves it out. Throws with its name if the node
// needs it, or has it in another type.
template <typename T>
std::optional<T> find_attribute(const Ort::ConstKernelInfo& node,
                                const AttributeContract& attribute) {
  try {
    return node.GetAttribute<T>(attribute.name);
  } catch (const Ort::Exception& error) {
    // One code for every reason: an absent attribute is told from one of another type by the text.
    const std::string text = error.what();
    if (!attribute.required && text.find("No attribute with name") != std::string::npos) {
      return {};
    }
    throw std::invalid_argument("attribute " + std::string(attribute.name) + ": " + text);
  }
}

inline std::invalid_argument wrong_value(const AttributeContract& attribute,
                                         const std::string& value, const std::string& expected) {
  return std::invalid_argument(std::string(attribute.name) + " is " + value + "; expected " +
                               expected + ".");
}

// An attribute within its limits; throws with what is wrong with it.
template <typename T>
T number_attribute(const Ort::ConstKernelInfo& node, const AttributeContract& attribute) {
  const T value = find_attribute<T>(node, attribute).value_or(static_cast<T>(attribute.absent));
  const std::string expected = expected_instead(attribute, static_cast<double>(value));
  if (!expected.empty()) {
    throw wrong_value(attribute, std::to_string(value), expected);
  }
  return value;
}

inline int64_t int_attribute(const Ort::ConstKernelInfo& node, const AttributeContract& attribute) {
  const auto value = number_attribute<int64_t>(node, attribute);
  return value <= kMost ? value : throw wrong_value(attribute, std::to_string(value), "up to 2^30");
}

inline bool flag_attribute(const Ort::ConstKernelInfo& node, const AttributeContract& attribute) {
  return int_attribute(node, attribute) == 1;
}

// The place of a text among the choices.
inline int32_t choice_attribute(const Ort::ConstKernelInfo& node,
                                const AttributeContract& attribute) {
  const auto text = find_attribute<std::string>(node, attribute);
  const int32_t place = text ? choice_of(attribute, *text) : static_cast<int32_t>(attribute.absent);
  return place >= 0 ? place
                    : throw wrong_value(attribute, "'" + *text + "'", choices_text(attribute));
}

// An input that may be absent.
struct Input {
  const void* data = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;
  bool present = false;
};

inline Input input_of(const Ort::ConstValue& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  return {value.GetTensorRawData(), info.GetElementType(), info.GetShape(), /*present=*/true};
}

inline Input read_input(const Ort::KernelContext& context, size_t index) {
  if (index >= context.GetInputCount()) {
    return {};
  }
  const Ort::ConstValue value = context.GetInput(index);
  return static_cast<const OrtValue*>(value) == nullptr ? Input{} : input_of(value);
}

// Reads an input that no call changes: a constant, or one that is absent. False for any other.
inline bool read_constant(const Ort::ConstKernelInfo& node, size_t index, Input& input) {
  if (index >= node.GetInputCount() || node.GetInputName(index).empty()) {
    return true;
  }
  int is_constant = 0;
  const Ort::ConstValue value = node.GetTensorConstantInput(index, &is_constant);
  if (is_constant != 0) {
    input = input_of(value);
  }
  return is_constant != 0;
}

}  // namespace moh::ort
