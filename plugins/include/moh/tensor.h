// Raw views of tensors: what a runtime hands to a kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moh {

enum class DType : uint8_t { kBool, kFloat32, kFloat16, kBFloat16, kInt64 };

// Where an element of a tensor [batch, head, token, feature] is: features are contiguous, the other
// strides count elements. A rank-3 tensor [batch, token, head * feature] is such a view, too.
struct HeadStrides {
  ptrdiff_t batch;
  ptrdiff_t head;
  ptrdiff_t token;
};

}  // namespace moh
