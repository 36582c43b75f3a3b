// The kernels for NVIDIA GPUs, behind a C interface: describe, choose, ask for workspace, enqueue.
// TensorRT's plugin, ONNX Runtime's operators and the tests call nothing else.
//
// Pointers in the argument structs are device memory. Every function checks its arguments on the
// host before it launches anything, allocates nothing, and waits for nothing: a call may be part of
// a CUDA graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moh/aggregated_attention.h"
#include "moh/attention.h"
#include "moh/router.h"

struct CUstream_st;

namespace moh::cuda {

using Stream = CUstream_st*;  // cudaStream_t

enum class Status : int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // the caller's mistake: a null pointer, sizes that do not fit together
  kUnsupported = 2,      // defined by docs/ops.md, but beyond what these kernels can do
  kWorkspaceTooSmall = 3,
  kCudaError = 4,     // the CUDA runtime refused a launch
  kNoDevice = 5,      // there is no driver, or it finds no GPU
  kDriverTooOld = 6,  // there is one, of before the CUDA that this library was compiled with
};

enum class AttentionTactic : int32_t {
  kSparse = 0,  // only rows of open gates are computed
  kDense = 1,   // all rows are, and multiplied by their gates
};

// Rows of queries that a block computes together, by rows of each of its warps. With 32 rows a warp
// multiplies each key that it loads twice as often: for float16 and bfloat16, heads of up to 128,
// without an attn_mask that differs from query to query or from head to head.
enum class AttentionBlock : int32_t {
  k64By16 = 0,
  k64By32 = 1,
  k128By32 = 2,
};

enum class AttentionKernel : int32_t {
  kCuda = 0,    // every GPU, dtype, size and mask
  kTriton = 1,  // compiled by Triton for one generation of GPUs, if the library was built with it
};

// The least rows of a block. Where a key/value head has no more of them, tactics do not differ in
// what they compute.
constexpr int32_t kAttentionTileRows = 64;

// The share of open gates to expect where nothing is known: the published models have 0.5 to 0.9.
constexpr float kUsualOpenShare = 0.75f;

// How an attention runs.
struct AttentionChoice {
  AttentionTactic tactic;
  int32_t key_splits;  // parts that the keys of a row are divided into; more than 1: their results
                       // are combined
  AttentionBlock block;
  const char* reason;  // half a sentence, static
  AttentionKernel kernel = AttentionKernel::kCuda;
  const char* kernel_reason = "";  // the same
};

// What a choice depends on.
struct Device {
  int32_t multiprocessors;
  int32_t compute_capability;  // 80, 89, 90, 120, ...
};

}  // namespace moh::cuda

extern "C" {

// Why the last call of this thread was not kOk: what, got, limit. Never null.
const char* moh_cuda_last_error();

// Of the current device. Without one, says whether there is no GPU or the driver is too old.
moh::cuda::Status moh_cuda_device(moh::cuda::Device* device);

// From now on, calls of this thread load the kernels that they would launch, and launch none: what
// is loaded when it is first launched cannot be captured into a CUDA graph in every case. The
// arguments are checked as ever; pointers are not read.
void moh_cuda_load_only(bool load_only);

// MoHRouter. head_counts: [shared + routed] int32, to which the number of tokens that chose each
// head is added, or null.
moh::cuda::Status moh_cuda_router(const moh::RouterArgs* args, int32_t* head_counts,
                                  moh::cuda::Stream stream);

// What this library has of Triton's kernels, a line each: "sm_90 float16 64"; empty: it was built
// without. moh_cuda_attention refuses kTriton if no kernel fits the GPU, dtype and head size, or
// with an attn_mask, lengths or key splits, or where rows are not whole, aligned 16 bytes.
const char* moh_cuda_triton_kernels();

// MoHAttention. The first two look at pointers for their alignment only, a null pointer being
// aligned, and for mask.data, nonpad_kv_seqlen and key_ranges being null or not.
//
// open_share: of the gates, as far as the caller knows (kUsualOpenShare if not). Results are right
// for any gates; which way is the fastest depends on it.
moh::cuda::Status moh_cuda_attention_choose(const moh::AttentionArgs* args,
                                            const moh::cuda::Device* device, float open_share,
                                            moh::cuda::AttentionChoice* choice);
// What a choice is made by: the microseconds that a model of the GPU expects, nothing measured.
moh::cuda::Status moh_cuda_attention_estimate(const moh::AttentionArgs* args,
                                              const moh::cuda::Device* device, float open_share,
                                              const moh::cuda::AttentionChoice* choice,
                                              double* microseconds);
moh::cuda::Status moh_cuda_attention_workspace(const moh::AttentionArgs* args,
                                               const moh::cuda::AttentionChoice* choice,
                                               size_t* bytes);
// Whether a choice can be run on such a GPU; if not, moh_cuda_last_error says why.
moh::cuda::Status moh_cuda_attention_check(const moh::AttentionArgs* args,
                                           const moh::cuda::Device* device,
                                           const moh::cuda::AttentionChoice* choice);
moh::cuda::Status moh_cuda_attention(const moh::AttentionArgs* args,
                                     const moh::cuda::AttentionChoice* choice, void* workspace,
                                     size_t workspace_bytes, moh::cuda::Stream stream);

// Gates for measuring: about `open_share` of them 1, the others 0, the same ones each time.
moh::cuda::Status moh_cuda_synthetic_gates(void* gates, moh::DType dtype, int64_t count,
                                           float open_share, moh::cuda::Stream stream);

// MoHAggregatedAttention. Needs no workspace.
moh::cuda::Status moh_cuda_aggregated_attention(const moh::AggregatedAttentionArgs* args,
                                                moh::cuda::Stream stream);

}  // extern "C"
