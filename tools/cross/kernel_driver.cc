// Runs kernels without a runtime: reads cases from stdin, writes outputs to stdout. run_cases.py
// speaks with it, and says what a case consists of.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/kernels.h"

namespace {

using moh::DType;
using moh::HeadStrides;

int64_t ReadNumber() {
  int64_t number;
  if (std::fread(&number, sizeof(number), 1, stdin) != 1) {
    std::exit(2);
  }
  return number;
}

int32_t ReadSize() { return static_cast<int32_t>(ReadNumber()); }

// A tensor is its size in bytes and its bytes. An absent one has size 0.
using Bytes = std::unique_ptr<char[]>;

Bytes ReadTensor() {
  const auto size = static_cast<size_t>(ReadNumber());
  if (size == 0) {
    return nullptr;
  }
  Bytes data(new char[size]);
  if (std::fread(data.get(), 1, size, stdin) != size) {
    std::exit(2);
  }
  return data;
}

// An output begins as NaN in every floating-point type.
Bytes MakeOutput(size_t size) {
  Bytes data(new char[size]);
  std::memset(data.get(), 0xff, size);
  return data;
}

void WriteOutput(const Bytes& data, size_t size) {
  std::fwrite(data.get(), 1, size, stdout);
  std::fflush(stdout);
}

size_t ElementSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

HeadStrides Strides(int64_t rank, int64_t heads, int64_t tokens, int64_t dim) {
  const ptrdiff_t batch = heads * tokens * dim;
  return rank == 4 ? HeadStrides{batch, tokens * dim, dim} : HeadStrides{batch, dim, heads * dim};
}

// One index after the other, the last first: the order must not matter.
const moh::cpu::Parallel kBackwards{
    [](void*, moh::cpu::Parallel::Body body, size_t count, void* argument) {
      while (count-- > 0) {
        body(argument, count);
      }
    },
    nullptr};

void RunAttention(const moh::cpu::Kernels& kernels) {
  moh::AttentionArgs args{};
  args.dtype = static_cast<DType>(ReadNumber());
  const int64_t rank = ReadNumber();
  for (int32_t* size : {&args.batch, &args.q_heads, &args.kv_heads, &args.queries, &args.keys,
                        &args.head_dim, &args.value_dim}) {
    *size = ReadSize();
  }
  args.causal = ReadNumber() != 0;
  const auto scale_bits = static_cast<uint32_t>(ReadNumber());
  std::memcpy(&args.scale, &scale_bits, sizeof(args.scale));
  args.mask.dtype = static_cast<DType>(ReadNumber());
  for (ptrdiff_t* stride : {&args.mask.batch, &args.mask.head, &args.mask.query, &args.mask.key}) {
    *stride = static_cast<ptrdiff_t>(ReadNumber());
  }
  const Bytes query = ReadTensor(), key = ReadTensor(), value = ReadTensor();
  const Bytes gates = ReadTensor(), mask = ReadTensor();
  args.query = query.get();
  args.key = key.get();
  args.value = value.get();
  args.gates = gates.get();
  args.mask.data = mask.get();
  args.query_strides = Strides(rank, args.q_heads, args.queries, args.head_dim);
  args.key_strides = Strides(rank, args.kv_heads, args.keys, args.head_dim);
  args.value_strides = Strides(rank, args.kv_heads, args.keys, args.value_dim);
  args.output_strides = Strides(rank, args.q_heads, args.queries, args.value_dim);
  const size_t size = static_cast<size_t>(args.batch * args.output_strides.batch);
  const Bytes output = MakeOutput(size * ElementSize(args.dtype));
  args.output = output.get();
  kernels.attention(args, moh::cpu::Compute::kFloat32, kBackwards);
  WriteOutput(output, size * ElementSize(args.dtype));
}

void RunRouter(const moh::cpu::Kernels& kernels) {
  moh::RouterArgs args{};
  args.dtype = static_cast<DType>(ReadNumber());
  args.tokens = ReadNumber();
  for (int32_t* size : {&args.routed, &args.shared, &args.top_k}) {
    *size = ReadSize();
  }
  args.mask_only = ReadNumber() != 0;
  const Bytes routed = ReadTensor(), shared = ReadTensor(), stage = ReadTensor();
  args.routed_logits = routed.get();
  args.shared_logits = shared.get();
  args.stage_logits = stage.get();
  const auto heads = static_cast<size_t>(args.routed + args.shared);
  const size_t bytes = static_cast<size_t>(args.tokens) * heads * ElementSize(args.dtype);
  const Bytes gates = MakeOutput(bytes);
  args.gates = gates.get();
  kernels.router(args, kBackwards);
  WriteOutput(gates, bytes);
}

void RunTokenConv(const moh::cpu::Kernels& kernels) {
  moh::TokenConvArgs args{};
  args.dtype = static_cast<DType>(ReadNumber());
  for (int32_t* size : {&args.batch, &args.height, &args.width, &args.channels, &args.kernel_height,
                        &args.kernel_width}) {
    *size = ReadSize();
  }
  args.activation = ReadNumber() != 0 ? moh::Activation::kGelu : moh::Activation::kNone;
  args.gated = ReadNumber() != 0;
  const Bytes tokens = ReadTensor(), weight = ReadTensor(), bias = ReadTensor();
  args.input = tokens.get();
  args.weight = weight.get();
  args.bias = bias.get();
  const auto elements = static_cast<size_t>(args.batch) * static_cast<size_t>(args.height) *
                        static_cast<size_t>(args.width) * static_cast<size_t>(args.channels);
  const Bytes output = MakeOutput(elements * ElementSize(args.dtype));
  args.output = output.get();
  kernels.token_conv(args, kBackwards);
  WriteOutput(output, elements * ElementSize(args.dtype));
}

}  // namespace

// Each case begins with 1 for attention, 2 for a router, 3 for a token convolution; 0 is the end.
int main(int, char** argv) {
  const moh::cpu::Kernels* kernels = moh::cpu::FindKernels(argv[1] == nullptr ? "" : argv[1]);
  if (kernels == nullptr) {
    return 3;
  }
  while (const int64_t op = ReadNumber()) {
    switch (op) {
      case 1:
        RunAttention(*kernels);
        break;
      case 2:
        RunRouter(*kernels);
        break;
      default:
        RunTokenConv(*kernels);
    }
  }
  return 0;
}
