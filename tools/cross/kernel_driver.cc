// Runs kernels without a runtime: reads cases from stdin, writes outputs to stdout. run_cases.py
// speaks with it, and says what a case consists of.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

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

float ReadFloat() {
  const auto bits = static_cast<uint32_t>(ReadNumber());
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

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
  args.scale = ReadFloat();
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

void RunAggregatedAttention(const moh::cpu::Kernels& kernels) {
  moh::AggregatedAttentionArgs args{};
  args.dtype = static_cast<DType>(ReadNumber());
  for (int32_t* size : {&args.batch, &args.heads, &args.head_dim, &args.height, &args.width,
                        &args.kernel_height, &args.kernel_width, &args.pooled}) {
    *size = ReadSize();
  }
  args.normalize = ReadNumber() != 0;
  args.epsilon = ReadFloat();
  const void** const tensors[] = {&args.query,           &args.key,           &args.value,
                                  &args.pooled_key,      &args.pooled_value,  &args.gates,
                                  &args.query_embedding, &args.query_scale,   &args.window_bias,
                                  &args.pooled_bias,     &args.window_tokens, &args.window_offset};
  std::vector<Bytes> owned;
  for (const void** tensor : tensors) {
    owned.push_back(ReadTensor());
    *tensor = owned.back().get();
  }
  const auto elements = static_cast<size_t>(args.batch) * static_cast<size_t>(args.height) *
                        static_cast<size_t>(args.width) * static_cast<size_t>(args.heads) *
                        static_cast<size_t>(args.head_dim);
  const Bytes output = MakeOutput(elements * ElementSize(args.dtype));
  args.output = output.get();
  kernels.aggregated_attention(args, kBackwards);
  WriteOutput(output, elements * ElementSize(args.dtype));
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
  const Bytes tokens = ReadTensor(), weight = ReadTensor();
  const Bytes bias = ReadTensor(), input_bias = ReadTensor();
  args.input_bias = input_bias.get();
  args.input = tokens.get();
  args.weight = weight.get();
  args.bias = bias.get();
  const auto elements = static_cast<size_t>(args.batch) * static_cast<size_t>(args.height) *
                        static_cast<size_t>(args.width) * static_cast<size_t>(args.channels);
  const Bytes output = MakeOutput(elements * ElementSize(args.dtype));
  args.output = output.get();
  std::vector<float> packed(kernels.packed_taps_size(args));
  kernels.pack_taps(args, packed.data());
  kernels.token_conv(args, packed.data(), kBackwards);
  WriteOutput(output, elements * ElementSize(args.dtype));
}

using Packed = std::unique_ptr<float, void (*)(void*)>;

Packed PackWeight(const moh::cpu::Kernels& kernels, const moh::WeightArgs& args) {
  constexpr size_t kUnit = moh::cpu::kWeightAlignment;
  const size_t bytes = kernels.packed_weight_size(args.depth, args.columns) * sizeof(float);
  Packed packed(static_cast<float*>(std::aligned_alloc(kUnit, (bytes / kUnit + 1) * kUnit)),
                std::free);
  kernels.pack_weight(args, packed.get(), kBackwards);
  return packed;
}

// Of either projection: `features` are those of the axis without heads.
template <class Args>
void RunProjection(const moh::cpu::Kernels& kernels, int32_t Args::* features, bool of_queries,
                   void (*run)(const Args&, const float*, const moh::cpu::Parallel&)) {
  Args args{};
  args.dtype = static_cast<DType>(ReadNumber());
  args.tokens = ReadNumber();
  for (int32_t* size : {&(args.*features), &args.heads, &args.head_dim}) {
    *size = ReadSize();
  }
  const Bytes input = ReadTensor(), weight = ReadTensor(), gates = ReadTensor(),
              bias = ReadTensor();
  args.input = input.get();
  args.gates = gates.get();
  args.bias = bias.get();
  const int32_t rows = args.*features, hidden = args.heads * args.head_dim;
  const int32_t depth = of_queries ? rows : hidden, columns = of_queries ? hidden : rows;
  const Packed packed = PackWeight(kernels, {args.dtype, weight.get(), depth, columns});
  const size_t bytes =
      static_cast<size_t>(args.tokens) * static_cast<size_t>(columns) * ElementSize(args.dtype);
  const Bytes output = MakeOutput(bytes);
  args.output = output.get();
  run(args, packed.get(), kBackwards);
  WriteOutput(output, bytes);
}

void RunQueryProjection(const moh::cpu::Kernels& kernels) {
  RunProjection(kernels, &moh::QueryProjectionArgs::in_features, true, kernels.query_projection);
}

void RunOutputProjection(const moh::cpu::Kernels& kernels) {
  RunProjection(kernels, &moh::OutputProjectionArgs::out_features, false,
                kernels.output_projection);
}

using Run = void (*)(const moh::cpu::Kernels& kernels);
constexpr Run kRuns[] = {RunAttention,           RunRouter,          RunTokenConv,
                         RunAggregatedAttention, RunQueryProjection, RunOutputProjection};

}  // namespace

// Each case begins with the number of its op, counted from 1 in kRuns; 0 is the end.
int main(int, char** argv) {
  const moh::cpu::Kernels* kernels = moh::cpu::FindKernels(argv[1] == nullptr ? "" : argv[1]);
  if (kernels == nullptr) {
    return 3;
  }
  while (const int64_t op = ReadNumber()) {
    kRuns[op - 1](*kernels);
  }
  return 0;
}
