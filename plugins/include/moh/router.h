// What an implementation of MoHRouter is called with. docs/ops.md says what it has to compute.
#pragma once

#include "moh/tensor.h"

namespace moh {

struct RouterArgs {
  DType dtype;                // of every tensor
  const void* routed_logits;  // [tokens, routed], null if routed is 0
  const void* shared_logits;  // [tokens, shared], null: each shared gate is 1
  const void* stage_logits;   // [tokens, 2], null: no weighing
  void* gates;                // [tokens, shared + routed]
  int64_t tokens;
  int32_t routed, shared, top_k;
  bool mask_only;  // gate_mode "mask": an open gate is 1
};

}  // namespace moh
