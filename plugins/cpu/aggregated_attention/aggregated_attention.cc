// MoHAggregatedAttention: attention of image tokens to those around them and to a pooled image.
#include "cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/aggregated_attention/aggregated_attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once more for each instruction set

#include <atomic>
#include <new>

#include "cpu/aggregated_attention/band-inl.h"
#include "cpu/aggregated_attention/bands.h"
#include "cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// One call, as the threads see it.
struct AggregatedAttentionCall {
  const AggregatedAttentionArgs& args;
  const Bands bands{args, kGroupTokens};
  const Window window{args};
  std::atomic<bool> out_of_memory{false};

  static void run_one(void* call, size_t i) {
    auto& self = *static_cast<AggregatedAttentionCall*>(call);
    try {
      with_type(self.args.dtype, [&](auto type) { self.run<decltype(type)>(i); });
    } catch (const std::bad_alloc&) {
      self.out_of_memory = true;
    }
  }

  template <typename T>
  void run(size_t i) const {
    thread_local Scratch scratch;
    const Band band = bands[i];
    if (band.tokens() != 0) {
      BandTask<T>(args, window, band, scratch).run();
    }
  }
};

void aggregated_attention(const AggregatedAttentionArgs& args, const Parallel& parallel) {
  if (args.head_dim == 0) {
    return;
  }
  AggregatedAttentionCall call{args};
  parallel(call.bands.count(), &AggregatedAttentionCall::run_one, &call);
  if (call.out_of_memory) {
    throw std::bad_alloc();
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
