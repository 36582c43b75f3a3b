// The kernels' C interface, answered by functions that a test sets: calls of a plugin, and their
// times, are seen without kernels.
#include "moh/cuda.h"

using namespace moh;
using namespace moh::cuda;

struct Fakes {
  const char* (*last_error)();
  Status (*device)(Device*);
  Status (*router)(const RouterArgs*, int32_t*, Stream);
  Status (*choose)(const AttentionArgs*, const Device*, float, AttentionChoice*);
  Status (*workspace)(const AttentionArgs*, const AttentionChoice*, size_t*);
  Status (*attention)(const AttentionArgs*, const AttentionChoice*, void*, size_t, Stream);
  Status (*gates)(void*, DType, int64_t, float, Stream);
  Status (*aggregated)(const AggregatedAttentionArgs*, Stream);
  Status (*check)(const AttentionArgs*, const Device*, const AttentionChoice*);
};

// As on a machine without a GPU.
extern "C" {
__attribute__((visibility("default"))) Fakes fake_kernels{
    [] { return "MoHAttention: there is no GPU."; },
    [](Device*) { return Status::kCudaError; },
    [](const RouterArgs*, int32_t*, Stream) { return Status::kCudaError; },
    [](const AttentionArgs*, const Device*, float, AttentionChoice* choice) {
      *choice = {AttentionTactic::kSparse, 1,         AttentionBlock::k64By16, "as ever",
                 AttentionKernel::kCuda,   "as ever"};
      return Status::kOk;
    },
    [](const AttentionArgs*, const AttentionChoice*, size_t* bytes) {
      *bytes = 1024;
      return Status::kOk;
    },
    [](const AttentionArgs*, const AttentionChoice*, void*, size_t, Stream) {
      return Status::kCudaError;
    },
    [](void*, DType, int64_t, float, Stream) { return Status::kCudaError; },
    [](const AggregatedAttentionArgs*, Stream) { return Status::kCudaError; },
    [](const AttentionArgs*, const Device*, const AttentionChoice* choice) {
      return choice->kernel == AttentionKernel::kCuda ? Status::kOk : Status::kUnsupported;
    },
};
}  // extern "C"

const char* moh_cuda_last_error() { return fake_kernels.last_error(); }

// Kernels are loaded before they run; a test sees that only if it asks.
namespace {

thread_local bool load_only = false;
int32_t loads = 0;

Status loaded() {
  ++loads;
  return Status::kOk;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int32_t fake_kernels_take_loads() {
  const int32_t taken = loads;
  loads = 0;
  return taken;
}
void moh_cuda_load_only(bool on) { load_only = on; }

Status moh_cuda_device(Device* device) { return fake_kernels.device(device); }
Status moh_cuda_router(const RouterArgs* args, int32_t* head_counts, Stream stream) {
  return load_only ? loaded() : fake_kernels.router(args, head_counts, stream);
}
Status moh_cuda_attention_choose(const AttentionArgs* args, const Device* device, float open_share,
                                 AttentionChoice* choice) {
  return fake_kernels.choose(args, device, open_share, choice);
}
Status moh_cuda_attention_workspace(const AttentionArgs* args, const AttentionChoice* choice,
                                    size_t* bytes) {
  return fake_kernels.workspace(args, choice, bytes);
}
Status moh_cuda_attention_check(const AttentionArgs* args, const Device* device,
                                const AttentionChoice* choice) {
  return fake_kernels.check(args, device, choice);
}
const char* moh_cuda_triton_kernels() { return "sm_90 float16 64\n"; }
Status moh_cuda_attention(const AttentionArgs* args, const AttentionChoice* choice, void* workspace,
                          size_t bytes, Stream stream) {
  return load_only ? loaded() : fake_kernels.attention(args, choice, workspace, bytes, stream);
}
Status moh_cuda_synthetic_gates(void* gates, DType dtype, int64_t count, float open_share,
                                Stream stream) {
  return load_only ? loaded() : fake_kernels.gates(gates, dtype, count, open_share, stream);
}
Status moh_cuda_aggregated_attention(const AggregatedAttentionArgs* args, Stream stream) {
  return load_only ? loaded() : fake_kernels.aggregated(args, stream);
}
