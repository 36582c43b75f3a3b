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

int64_t read_number() {
  int64_t number;
  if (std::fread(&number, sizeof(number), 1, stdin) != 1) {
    std::exit(2);
  }
  return number;
}

int32_t read_size() { return static_cast<int32_t>(read_number()); }

float read_float() {
  const auto bits = static_cast<uint32_t>(read_number());
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

// A tensor is its size in bytes and its bytes. An absent one has size 0.
using Bytes = std::unique_ptr<char[]>;

Bytes read_tensor() {
  const auto size = static_cast<size_t>(read_number());
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
Bytes make_output(size_t size) {
  Bytes data(new char[size]);
  std::memset(data.get(), 0xff, size);
  return data;
}

void write_output(const Bytes& data, size_t size) {
  std::fwrite(data.get(), 1, size, stdout);
  std::fflush(stdout);
}

size_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

HeadStrides strides(int64_t rank, int64_t heads, int64_t tokens, int64_t dim) {
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

void run_attention(const moh::cpu::Kernels& kernels) {
  moh::AttentionArgs args{};
  args.dtype = static_cast<DType>(read_number());
  const int64_t rank = read_number();
  for (int32_t* size : {&args.batch, &args.q_heads, &args.kv_heads, &args.queries, &args.keys,
                        &args.head_dim, &args.value_dim}) {
    *size = read_size();
  }
  args.causal = read_number() != 0;
  args.scale = read_float();
  args.mask.dtype = static_cast<DType>(read_number());
  for (ptrdiff_t* stride : {&args.mask.batch, &args.mask.head, &args.mask.query, &args.mask.key}) {
    *stride = static_cast<ptrdiff_t>(read_number());
  }
  const Bytes query = read_tensor(), key = read_tensor(), value = read_tensor();
  const Bytes gates = read_tensor(), mask = read_tensor(), lengths = read_tensor();
  args.query = query.get();
  args.key = key.get();
  args.value = value.get();
  args.gates = gates.get();
  args.mask.data = mask.get();
  args.nonpad_kv_seqlen = reinterpret_cast<const int64_t*>(lengths.get());
  args.query_strides = strides(rank, args.q_heads, args.queries, args.head_dim);
  args.key_strides = strides(rank, args.kv_heads, args.keys, args.head_dim);
  args.value_strides = strides(rank, args.kv_heads, args.keys, args.value_dim);
  args.output_strides = strides(rank, args.q_heads, args.queries, args.value_dim);
  const size_t size = static_cast<size_t>(args.batch * args.output_strides.batch);
  const Bytes output = make_output(size * element_size(args.dtype));
  args.output = output.get();
  kernels.attention(args, moh::cpu::Compute::kFloat32, kBackwards);
  write_output(output, size * element_size(args.dtype));
}

void run_aggregated_attention(const moh::cpu::Kernels& kernels) {
  moh::AggregatedAttentionArgs args{};
  args.dtype = static_cast<DType>(read_number());
  for (int32_t* size : {&args.batch, &args.heads, &args.head_dim, &args.height, &args.width,
                        &args.kernel_height, &args.kernel_width, &args.pooled}) {
    *size = read_size();
  }
  args.normalize = read_number() != 0;
  args.epsilon = read_float();
  const void** const tensors[] = {&args.query,           &args.key,           &args.value,
                                  &args.pooled_key,      &args.pooled_value,  &args.gates,
                                  &args.query_embedding, &args.query_scale,   &args.window_bias,
                                  &args.pooled_bias,     &args.window_tokens, &args.window_offset};
  std::vector<Bytes> owned;
  for (const void** tensor : tensors) {
    owned.push_back(read_tensor());
    *tensor = owned.back().get();
  }
  const auto elements = static_cast<size_t>(args.batch) * static_cast<size_t>(args.height) *
                        static_cast<size_t>(args.width) * static_cast<size_t>(args.heads) *
                        static_cast<size_t>(args.head_dim);
  const Bytes output = make_output(elements * element_size(args.dtype));
  args.output = output.get();
  kernels.aggregated_attention(args, kBackwards);
  write_output(output, elements * element_size(args.dtype));
}

void run_router(const moh::cpu::Kernels& kernels) {
  moh::RouterArgs args{};
  args.dtype = static_cast<DType>(read_number());
  args.tokens = read_number();
  for (int32_t* size : {&args.routed, &args.shared, &args.top_k}) {
    *size = read_size();
  }
  args.mask_only = read_number() != 0;
  const Bytes routed = read_tensor(), shared = read_tensor(), stage = read_tensor();
  args.routed_logits = routed.get();
  args.shared_logits = shared.get();
  args.stage_logits = stage.get();
  const auto heads = static_cast<size_t>(args.routed + args.shared);
  const size_t bytes = static_cast<size_t>(args.tokens) * heads * element_size(args.dtype);
  const Bytes gates = make_output(bytes);
  args.gates = gates.get();
  kernels.router(args, kBackwards);
  write_output(gates, bytes);
}

void run_token_conv(const moh::cpu::Kernels& kernels) {
  moh::TokenConvArgs args{};
  args.dtype = static_cast<DType>(read_number());
  for (int32_t* size : {&args.batch, &args.height, &args.width, &args.channels, &args.kernel_height,
                        &args.kernel_width}) {
    *size = read_size();
  }
  args.activation = read_number() != 0 ? moh::Activation::kGelu : moh::Activation::kNone;
  args.gated = read_number() != 0;
  const Bytes tokens = read_tensor(), weight = read_tensor();
  const Bytes bias = read_tensor(), input_bias = read_tensor();
  args.input_bias = input_bias.get();
  args.input = tokens.get();
  args.weight = weight.get();
  args.bias = bias.get();
  const auto elements = static_cast<size_t>(args.batch) * static_cast<size_t>(args.height) *
                        static_cast<size_t>(args.width) * static_cast<size_t>(args.channels);
  const Bytes output = make_output(elements * element_size(args.dtype));
  args.output = output.get();
  std::vector<float> packed(kernels.packed_taps_size(args));
  kernels.pack_taps(args, packed.data());
  kernels.token_conv(args, packed.data(), kBackwards);
  write_output(output, elements * element_size(args.dtype));
}

using Packed = std::unique_ptr<float, void (*)(void*)>;

Packed pack_weight(const moh::cpu::Kernels& kernels, const moh::WeightArgs& args) {
  constexpr size_t kUnit = moh::cpu::kWeightAlignment;
  const size_t bytes = kernels.packed_weight_size(args.depth, args.columns) * sizeof(float);
  Packed packed(static_cast<float*>(std::aligned_alloc(kUnit, (bytes / kUnit + 1) * kUnit)),
                std::free);
  kernels.pack_weight(args, packed.get(), kBackwards);
  return packed;
}

// Of either projection: `features` are those of the axis without heads.
template <class Args>
void run_projection(const moh::cpu::Kernels& kernels, int32_t Args::* features, bool of_queries,
                    void (*run)(const Args&, const float*, const moh::cpu::Parallel&)) {
  Args args{};
  args.dtype = static_cast<DType>(read_number());
  args.tokens = read_number();
  for (int32_t* size : {&(args.*features), &args.heads, &args.head_dim}) {
    *size = read_size();
  }
  const Bytes input = read_tensor(), weight = read_tensor(), gates = read_tensor(),
              bias = read_tensor();
  args.input = input.get();
  args.gates = gates.get();
  args.bias = bias.get();
  const int32_t rows = args.*features, hidden = args.heads * args.head_dim;
  const int32_t depth = of_queries ? rows : hidden, columns = of_queries ? hidden : rows;
  const Packed packed = pack_weight(kernels, {args.dtype, weight.get(), depth, columns});
  const size_t bytes =
      static_cast<size_t>(args.tokens) * static_cast<size_t>(columns) * element_size(args.dtype);
  const Bytes output = make_output(bytes);
  args.output = output.get();
  run(args, packed.get(), kBackwards);
  write_output(output, bytes);
}

void run_query_projection(const moh::cpu::Kernels& kernels) {
  run_projection(kernels, &moh::QueryProjectionArgs::in_features, true, kernels.query_projection);
}

void run_output_projection(const moh::cpu::Kernels& kernels) {
  run_projection(kernels, &moh::OutputProjectionArgs::out_features, false,
                 kernels.output_projection);
}

using Run = void (*)(const moh::cpu::Kernels& kernels);
constexpr Run kRuns[] = {run_attention,        run_router,
                         run_token_conv,       run_aggregated_attention,
                         run_query_projection, run_output_projection};

}  // namespace

// Each case begins with the number of its op, counted from 1 in kRuns; 0 is the end.
int main(int, char** argv) {
  const moh::cpu::Kernels* kernels = moh::cpu::find_kernels(argv[1] == nullptr ? "" : argv[1]);
  if (kernels == nullptr) {
    return 3;
  }
  while (const int64_t op = read_number()) {
    kRuns[op - 1](*kernels);
  }
  return 0;
}
