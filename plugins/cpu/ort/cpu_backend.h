#pragma once

#include "cpu/kernels.h"
#include "cpu/ort/session_threads.h"
#include "moh/op_contract.h"
#include "nodes/attention.h"
#include "ort/backend.h"
#include "ort/node_kernel.h"

namespace moh::ort {

// One choice of kernels, on the session's own threads.
class CpuBackend final : public Backend {
 public:
  // `rounding`: for nodes that allow products of bfloat16; null where their word does not count.
  CpuBackend(const cpu::Kernels& kernels, cpu::Compute compute, const CpuBackend* rounding)
      : kernels_(kernels), compute_(compute), rounding_(rounding) {}

  const char* execution_provider() const override { return "CPUExecutionProvider"; }

  const Backend& with_bfloat16_products() const override {
    return rounding_ == nullptr ? *this : *rounding_;
  }

  Ort::Status attention(const AttentionArgs& args, Ort::KernelContext& context) const override {
    return unless_refused(contract::attention::kOp, [&] {
      node::check_lengths(args);
      kernels_.attention(args, compute_, session_threads(context));
    });
  }

  Ort::Status aggregated_attention(const AggregatedAttentionArgs& args,
                                   Ort::KernelContext& context) const override {
    kernels_.aggregated_attention(args, session_threads(context));
    return Ort::Status();
  }

  Ort::Status router(const RouterArgs& args, Ort::KernelContext& context) const override {
    kernels_.router(args, session_threads(context));
    return Ort::Status();
  }

 private:
  const cpu::Kernels& kernels_;
  const cpu::Compute compute_;
  const CpuBackend* const rounding_;
};

}  // namespace moh::ort
