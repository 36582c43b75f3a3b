// The ops, each in a file of its own.
#pragma once

#include "cuda/trt/core/op.h"

namespace moh::trt {

const OpInfo& router_info();
const OpInfo& attention_info();
const OpInfo& aggregated_attention_info();

}  // namespace moh::trt
