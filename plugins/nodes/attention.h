// MoHAttention: what its kernel is called with.
#pragma once

#include "moh/attention.h"
#include "moh/op_contract.h"
#include "nodes/node.h"

namespace moh::node {

struct Attention {
  static constexpr const OpContract& kOp = contract::attention::kOp;
  using Args = AttentionArgs;

  // Fills in all but the output, and returns the output's shape.
  static Shape read(const Attributes& attributes, const Tensors& in, Args& args);
};

}  // namespace moh::node
