// A node of ours as a runtime gives it, in no runtime's words: tensors, and attributes that hold to
// the op's contract. The files beside this one make of it what a kernel is called with.
//
// They throw std::invalid_argument with what is wrong, what was expected, and no name of the op.
#pragma once

#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moh/contract.h"
#include "moh/tensor.h"

namespace moh::node {

using Shape = std::vector<int64_t>;

// Kernels count in 32 bits, with room to round up; offsets have 64.
constexpr int64_t kMost = int64_t{1} << 30;

// An input that may be absent. Shapes can be read before there is data.
struct Tensor {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  Shape shape;
  bool present = false;
};

using Tensors = std::vector<Tensor>;  // all that the op has, in order

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

inline std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

// The values of a node's attributes, within their limits. A text is its place among the choices.
class Attributes {
 public:
  Attributes() = default;

  // `values`: one for each of the contract's attributes, in order.
  Attributes(const OpContract& op, std::vector<double> values)
      : op_(&op), values_(std::move(values)) {
    for (size_t i = 0; i < op.num_attributes; ++i) {
      const AttributeContract& attribute = op.attributes[i];
      const std::string expected = expected_instead(attribute, values_[i]);
      if (!expected.empty()) {
        refuse(attribute.name, " is ", values_[i], "; expected ", expected, ".");
      }
      if (attribute.type == AttributeType::kInt && values_[i] > double{kMost}) {
        refuse(attribute.name, " is ", values_[i], "; expected up to 2^30.");
      }
    }
  }

  const std::vector<double>& values() const { return values_; }

  int32_t integer(const AttributeContract& attribute) const {
    return static_cast<int32_t>(value(attribute));
  }
  bool flag(const AttributeContract& attribute) const { return value(attribute) == 1; }
  float number(const AttributeContract& attribute) const {
    return static_cast<float>(value(attribute));
  }

 private:
  double value(const AttributeContract& attribute) const {
    for (size_t i = 0; i < op_->num_attributes; ++i) {
      if (std::strcmp(op_->attributes[i].name, attribute.name) == 0) {
        return values_[i];
      }
    }
    throw std::logic_error(attribute.name);
  }

  const OpContract* op_ = nullptr;
  std::vector<double> values_;
};

// Refuses a node whose inputs are not there, or not of one floating dtype.
void check_inputs(const OpContract& op, const Tensors& in);

}  // namespace moh::node
