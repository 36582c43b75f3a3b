// moh::MoHRouter as a custom op.
#pragma once

#include "nodes/router.h"
#include "ort/custom_op.h"
#include "ort/node_kernel.h"

namespace moh::ort {

template <DType kType>
using RouterOp = CustomOp<contract::router::kOp, kType, NodeKernel<node::Router>, Backend>;

}  // namespace moh::ort
