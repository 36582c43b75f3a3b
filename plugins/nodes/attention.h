// MoHAttention: what its kernel is called with.
#pragma once

#include "moh/attention.h"
#include "moh/op_contract.h"
#include "nodes/node.h"

namespace moh::node {

struct Attention {
  static constexpr const OpContract& kOp = contract::attention::kOp;
  using Args = AttentionArgs;

  // Refuses attributes that do not fit each other, before there are tensors.
  static void check(const Attributes& attributes);

  // Fills in all but the output, and returns the output's shape.
  static Shape read(const Attributes& attributes, const Tensors& in, Args& args);
};

// Refuses lengths that are no number of keys. Only where they are in memory that this can read.
void check_lengths(const AttentionArgs& args);

}  // namespace moh::node
