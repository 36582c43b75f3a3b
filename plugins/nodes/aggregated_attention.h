// MoHAggregatedAttention: what its kernel is called with.
#pragma once

#include "moh/aggregated_attention.h"
#include "moh/op_contract.h"
#include "nodes/node.h"

namespace moh::node {

struct AggregatedAttention {
  static constexpr const OpContract& kOp = contract::aggregated_attention::kOp;
  using Args = AggregatedAttentionArgs;

  // Refuses attributes that do not fit each other, before there are tensors.
  static void check(const Attributes& attributes);

  // Fills in all but the output, and returns the output's shape.
  static Shape read(const Attributes& attributes, const Tensors& in, Args& args);
};

}  // namespace moh::node
