// What the operators run on: the kernels for the CPU, or those for a GPU.
#pragma once

#include "moh/aggregated_attention.h"
#include "moh/attention.h"
#include "moh/router.h"
#include "ort/ort.h"

namespace moh::ort {

// Called with arguments that were read from a node and its tensors, and checked.
class Backend {
 public:
  virtual ~Backend() = default;

  // The name by which ONNX Runtime knows where tensors are and who runs the operators.
  virtual const char* execution_provider() const = 0;

  // The backend for a node that allows the operands of its products to be rounded to bfloat16: a
  // backend that does not round them goes on as it is.
  virtual const Backend& with_bfloat16_products() const { return *this; }

  virtual Ort::Status attention(const AttentionArgs& args, Ort::KernelContext& context) const = 0;
  virtual Ort::Status aggregated_attention(const AggregatedAttentionArgs& args,
                                           Ort::KernelContext& context) const = 0;
  virtual Ort::Status router(const RouterArgs& args, Ort::KernelContext& context) const = 0;
};

}  // namespace moh::ort
