#include "openvino/kernels.h"

#include <tbb/parallel_for.h>

#include <vector>

#include "nodes/attention.h"

namespace moh::openvino {
namespace {

// Within the arena that a stream of OpenVINO runs its nodes in, which has as many threads as asked.
const cpu::Parallel kArena{[](void*, cpu::Parallel::Body body, size_t count, void* argument) {
                             if (count == 1) {
                               return body(argument, 0);
                             }
                             tbb::parallel_for(size_t{0}, count,
                                               [=](size_t i) { body(argument, i); });
                           },
                           nullptr};

}  // namespace

void run(const OnKernels& on, AttentionArgs& args, void* output) {
  node::check_lengths(args);
  args.output = output;
  on.kernels->attention(args, on.compute, kArena);
}

void run(const OnKernels& on, AggregatedAttentionArgs& args, void* output) {
  args.output = output;
  on.kernels->aggregated_attention(args, kArena);
}

void run(const OnKernels& on, RouterArgs& args, void* output) {
  args.gates = output;
  on.kernels->router(args, kArena);
}

void run(const OnKernels& on, TokenConvArgs& args, void* output) {
  args.output = output;
  // In every run: a few numbers for each channel, beside a pass over all tokens.
  std::vector<float> packed(on.kernels->packed_taps_size(args));
  on.kernels->pack_taps(args, packed.data());
  on.kernels->token_conv(args, packed.data(), kArena);
}

}  // namespace moh::openvino
