#pragma once

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"
#include "ort/backend.h"

namespace moh::ort {

// One choice of kernels, on the session's own threads.
class CpuBackend final : public Backend {
 public:
  CpuBackend(const cpu::Kernels& kernels, cpu::Compute compute)
      : kernels_(kernels), compute_(compute) {}

  const char* ExecutionProvider() const override { return "CPUExecutionProvider"; }

  Ort::Status Attention(const AttentionArgs& args, Ort::KernelContext& context) const override {
    kernels_.attention(args, compute_, SessionThreads(context));
    return Ort::Status();
  }

  Ort::Status AggregatedAttention(const AggregatedAttentionArgs& args,
                                  Ort::KernelContext& context) const override {
    kernels_.aggregated_attention(args, SessionThreads(context));
    return Ort::Status();
  }

  Ort::Status Router(const RouterArgs& args, Ort::KernelContext& context) const override {
    kernels_.router(args, SessionThreads(context));
    return Ort::Status();
  }

 private:
  const cpu::Kernels& kernels_;
  const cpu::Compute compute_;
};

}  // namespace moh::ort
