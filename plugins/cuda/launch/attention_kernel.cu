// Which kernel computes an attention's rows, and why.
#include <algorithm>

#include "cuda/device/integers.cuh"
#include "cuda/launch/attention_plan.h"
#include "cuda/launch/triton_attention.h"

namespace moh::cuda {
namespace {

// Columns that a head leaves empty are computed, too. Estimated, not measured: without
// them, Triton's kernel is 1.3 to 1.6 times as fast as one with 16 rows a warp (docs/adr/0057).
constexpr int32_t kLeastFilledQuarters = 3;

// Its tiles have twice the rows of the other kernel's: they have to occupy half of the GPU.
bool occupies(const AttentionArgs& args, const TritonCode& code, const Device& device) {
  const int64_t tiles =
      int64_t{args.batch} * args.kv_heads * ceil_div(rows_per_pair(args), code.tile_rows);
  return 2 * tiles >= device.multiprocessors;
}

}  // namespace

void choose_kernel(const AttentionArgs& args, const Device& device, AttentionChoice& choice) {
  choice.kernel = AttentionKernel::kCuda;
  // Keys were split for tiles that are too few to occupy the GPU: then its tiles are, too.
  const TritonCode* code = find_triton_code(args, device, /*key_splits=*/1, &choice.kernel_reason);
  if (code == nullptr) {
    return;
  }
  if (4 * std::max(args.head_dim, args.value_dim) < kLeastFilledQuarters * code->columns) {
    choice.kernel_reason =
        "Triton's kernel would compute more than a quarter of its columns in vain";
  } else if (!occupies(args, *code, device)) {
    choice.kernel_reason = "Triton's tiles are too few to occupy this GPU";
  } else {
    choice.kernel = AttentionKernel::kTriton;
    choice.key_splits = 1;
    choice.kernel_reason = "Triton's kernel reaches this GPU's own matrix units";
  }
}

}  // namespace moh::cuda
