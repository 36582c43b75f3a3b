// What MoHAttention refuses, and the words for it.
#include <algorithm>

#include "cuda/device/integers.cuh"
#include "cuda/kernels/attention/rows.cuh"
#include "cuda/launch/attention_plan.h"
#include "cuda/launch/status.h"
#include "moh/op_contract.h"

namespace moh::cuda {
namespace {

// Of rows of a pair, and of keys: what a block computes with them stays within 32 bits.
constexpr int64_t kMaxRows = int64_t{1} << 30;
// Of a grid.
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

Status check_dtypes(const AttentionArgs& args) {
  const Status status = check_dtype(contract::attention::kOp.name, args.dtype);
  if (status != Status::kOk) {
    return status;
  }
  if (args.mask.data != nullptr && args.mask.dtype > DType::kBFloat16) {
    return fail(Status::kUnsupported, "MoHAttention: dtype %d of attn_mask; expected bool, %s.",
                static_cast<int>(args.mask.dtype), contract::kFloatTypesText);
  }
  return Status::kOk;
}

Status check_lengths(const AttentionArgs& args) {
  if (args.batch < 0 || args.queries < 0 || args.keys < 0) {
    return fail(Status::kInvalidArgument,
                "MoHAttention: batch %d, %d queries, %d keys; expected no negative number.",
                args.batch, args.queries, args.keys);
  }
  if (args.kv_heads < 1 || args.q_heads < 1 || args.q_heads % args.kv_heads != 0) {
    return fail(Status::kInvalidArgument,
                "MoHAttention: %d query heads and %d key/value heads; expected a multiple of the "
                "latter, at least one.",
                args.q_heads, args.kv_heads);
  }
  return Status::kOk;
}

Status check_head_sizes(const AttentionArgs& args) {
  if (args.head_dim < 1 || args.value_dim < 1) {
    return fail(Status::kInvalidArgument,
                "MoHAttention: heads of size %d, values of size %d; expected at least 1.",
                args.head_dim, args.value_dim);
  }
  if (std::max(args.head_dim, args.value_dim) > kMaxHeadSize) {
    return fail(Status::kUnsupported,
                "MoHAttention: heads of size %d, values of size %d; the limit is %d.",
                args.head_dim, args.value_dim, kMaxHeadSize);
  }
  return Status::kOk;
}

Status check_grid(const AttentionArgs& args) {
  const int64_t rows = int64_t{args.queries} * (args.q_heads / args.kv_heads);
  if (rows > kMaxRows) {
    return fail(Status::kUnsupported,
                "MoHAttention: %lld rows of queries for a key/value head; the limit is %lld.",
                static_cast<long long>(rows), static_cast<long long>(kMaxRows));
  }
  if (args.keys > kMaxRows) {
    return fail(Status::kUnsupported, "MoHAttention: %d keys; the limit is %lld.", args.keys,
                static_cast<long long>(kMaxRows));
  }
  // The combining kernel has the most blocks: one for 4 rows.
  const int64_t pairs = int64_t{args.batch} * args.kv_heads;
  if (pairs > 0 && ceil_div<int64_t>(rows, 4) > kMaxBlocks / pairs) {
    return fail(Status::kUnsupported,
                "MoHAttention: %lld rows for each of %lld pairs of batch and key/value head; the "
                "limit is %lld blocks of 4 rows.",
                static_cast<long long>(rows), static_cast<long long>(pairs),
                static_cast<long long>(kMaxBlocks));
  }
  return Status::kOk;
}

}  // namespace

Status check_attention(const AttentionArgs& args) {
  for (const auto check : {check_dtypes, check_lengths, check_head_sizes, check_grid}) {
    const Status status = check(args);
    if (status != Status::kOk) {
      return status;
    }
  }
  return Status::kOk;
}

Status check_choice(const AttentionArgs& args, const AttentionChoice& choice) {
  if (choice.tactic != AttentionTactic::kSparse && choice.tactic != AttentionTactic::kDense) {
    return fail(Status::kInvalidArgument,
                "MoHAttention: tactic %d; expected 0 (sparse), 1 (dense).",
                static_cast<int>(choice.tactic));
  }
  if (choice.kernel != AttentionKernel::kCuda && choice.kernel != AttentionKernel::kTriton) {
    return fail(Status::kInvalidArgument, "MoHAttention: kernel %d; expected 0 (CUDA), 1 (Triton).",
                static_cast<int>(choice.kernel));
  }
  if (choice.key_splits < 1 || choice.key_splits > kMaxKeySplits) {
    return fail(Status::kInvalidArgument, "MoHAttention: %d key splits; expected 1 to %d.",
                choice.key_splits, kMaxKeySplits);
  }
  if (choice.block < AttentionBlock::k64By16 || choice.block > AttentionBlock::k128By32) {
    return fail(Status::kInvalidArgument, "MoHAttention: block %d; expected 0 to 2.",
                static_cast<int>(choice.block));
  }
  if (!has_block(args, choice.block)) {
    return fail(Status::kInvalidArgument,
                "MoHAttention: block %d, with 32 rows a warp; that is for float16 and bfloat16, "
                "heads of up to 128, and no attn_mask that differs from query to query or from "
                "head to head. Expected 0.",
                static_cast<int>(choice.block));
  }
  return Status::kOk;
}

Status check_pointers(const AttentionArgs& args) {
  const struct {
    const char* name;
    const void* pointer;
    bool needed;
  } tensors[] = {{"query", args.query, true},
                 {"key", args.key, args.keys > 0},
                 {"value", args.value, args.keys > 0},
                 {"gates", args.gates, true},
                 {"output", args.output, true}};
  for (const auto& tensor : tensors) {
    if (tensor.needed && tensor.pointer == nullptr) {
      return fail(Status::kInvalidArgument, "MoHAttention: %s is null.", tensor.name);
    }
  }
  return Status::kOk;
}

}  // namespace moh::cuda
