#pragma once

#include <iterator>

#include "moh/op_contract.h"
#include "ort/ort.h"

namespace moh::ort {

// An op for tensors of each dtype.
template <template <DType> class Op>
struct InEveryDType {
  static_assert(std::size(contract::kFloatTypes) == 3, "an op for each of them");

  template <typename... Arguments>
  explicit InEveryDType(const Arguments&... arguments)
      : float32(arguments...), float16(arguments...), bfloat16(arguments...) {}

  void add_to(Ort::CustomOpDomain& domain) {
    domain.Add(&float32);
    domain.Add(&float16);
    domain.Add(&bfloat16);
  }

  Op<DType::kFloat32> float32;
  Op<DType::kFloat16> float16;
  Op<DType::kBFloat16> bfloat16;
};

}  // namespace moh::ort
