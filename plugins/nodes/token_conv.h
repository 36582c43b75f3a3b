// MoHTokenConv: what its kernel is called with.
#pragma once

#include "moh/op_contract.h"
#include "moh/token_conv.h"
#include "nodes/node.h"

namespace moh::node {

struct TokenConv {
  static constexpr const OpContract& kOp = contract::token_conv::kOp;
  using Args = TokenConvArgs;

  // Fills in what the attributes, W and the biases say, which may be there before X is.
  static void read_taps(const Attributes& attributes, const Tensors& in, Args& args);

  // Fills in all but the output, and returns the output's shape.
  static Shape read(const Attributes& attributes, const Tensors& in, Args& args);
};

}  // namespace moh::node
