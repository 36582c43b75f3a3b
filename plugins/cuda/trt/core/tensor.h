// Types of tensors, as far as they are known: TensorRT tells dtypes and shapes at different times.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "cuda/trt/core/text.h"
#include "moh/tensor.h"

namespace moh::trt {

constexpr int64_t kUnknown = -1;  // a size, or a rank, that is not known yet
constexpr int kMaxRank = 8;
constexpr size_t kMaxInputs = 12;

struct Tensor {
  bool present = false;
  const char* type = nullptr;  // the element type's name; null: not known yet
  std::optional<DType> dtype;  // none: a type that no op has
  int rank = kUnknown;
  std::array<int64_t, kMaxRank> sizes{};

  int64_t from_end(int index) const { return sizes[static_cast<size_t>(rank - 1 - index)]; }
};

// In the op's order.
using Inputs = std::array<Tensor, kMaxInputs>;

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.rank; ++i) {
    const int64_t size = tensor.sizes[static_cast<size_t>(i)];
    text += (i == 0 ? "" : ", ") + (size == kUnknown ? "?" : std::to_string(size));
  }
  return text + "]";
}

constexpr size_t bytes_of(DType dtype) {
  return dtype == DType::kInt64 ? 8 : dtype == DType::kFloat32 ? 4 : dtype == DType::kBool ? 1 : 2;
}

}  // namespace moh::trt
