// What an implementation of MoHTokenConv is called with. docs/ops.md says what it has to compute.
#pragma once

#include "moh/tensor.h"

namespace moh {

enum class Activation : uint8_t { kNone, kGelu };

// A depthwise convolution, stride 1, zero padding, over tokens that are the pixels of an image.
struct TokenConvArgs {
  DType dtype;             // of every tensor
  const void* input;       // [batch, height * width, channels], or twice the channels if gated
  const void* weight;      // [channels, 1, kernel_height, kernel_width]
  const void* bias;        // [channels] or null
  const void* input_bias;  // of every token: as long as one, or null
  void* output;            // [batch, height * width, channels]
  int32_t batch, height, width, channels, kernel_height, kernel_width;
  Activation activation;
  bool gated;  // the result times the input's second half of the channels
};

}  // namespace moh
