// The kernels of another library, on the threads that OpenVINO gives a node.
#pragma once

#include "cpu/kernels.h"

namespace moh::openvino {

// One choice of kernels.
struct OnKernels {
  const cpu::Kernels* kernels = nullptr;
  cpu::Compute compute = cpu::Compute::kFloat32;
};

void run(const OnKernels& on, AttentionArgs& args, void* output);
void run(const OnKernels& on, AggregatedAttentionArgs& args, void* output);
void run(const OnKernels& on, RouterArgs& args, void* output);
void run(const OnKernels& on, TokenConvArgs& args, void* output);

}  // namespace moh::openvino
