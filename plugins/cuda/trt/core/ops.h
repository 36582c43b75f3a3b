// The ops, each in a file of its own.
#pragma once

#include "cuda/trt/core/op.h"

namespace moh::trt {

const OpInfo& RouterInfo();
const OpInfo& AttentionInfo();
const OpInfo& AggregatedAttentionInfo();

}  // namespace moh::trt
