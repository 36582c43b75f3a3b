// MoHRouter: what its kernel is called with.
#pragma once

#include "moh/op_contract.h"
#include "moh/router.h"
#include "nodes/node.h"

namespace moh::node {

struct Router {
  static constexpr const OpContract& kOp = contract::router::kOp;
  using Args = RouterArgs;

  // Any attributes fit each other: the rest is a matter of the logits.
  static void check(const Attributes&) {}

  // Fills in all but the gates, and returns their shape.
  static Shape read(const Attributes& attributes, const Tensors& in, Args& args);
};

}  // namespace moh::node
