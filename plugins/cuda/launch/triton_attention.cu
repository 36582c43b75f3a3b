#include "cuda/launch/triton_attention.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "cuda/device/integers.cuh"
#include "cuda/launch/status.h"

namespace moh::cuda {
namespace {

constexpr const char* kKernelText = "MoHAttention, kernel of Triton";

// A kernel of this process, and the devices that give it the shared memory it needs.
struct Loaded {
  cudaKernel_t kernel;
  std::set<int> devices;
};

// By code. Nothing is unloaded: a launch may be on its way until the process ends.
struct LoadedCodes {
  std::mutex mutex;
  std::map<const void*, Loaded> by_code;
};

LoadedCodes& loaded_codes() {
  static auto* codes = new LoadedCodes;
  return *codes;
}

cudaError_t load(const TritonCode& code, cudaKernel_t* kernel) {
  cudaLibrary_t library = nullptr;
  const cudaError_t error =
      cudaLibraryLoadData(&library, code.code, nullptr, nullptr, 0, nullptr, nullptr, 0);
  return error == cudaSuccess ? cudaLibraryGetKernel(kernel, library, code.kernel) : error;
}

cudaError_t load_for_device(const TritonCode& code, cudaKernel_t* kernel) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) {
    return error;
  }
  LoadedCodes& codes = loaded_codes();
  const std::lock_guard<std::mutex> lock(codes.mutex);
  auto found = codes.by_code.find(code.code);
  if (found == codes.by_code.end()) {
    cudaKernel_t loaded = nullptr;
    error = load(code, &loaded);
    if (error != cudaSuccess) {
      return error;
    }
    found = codes.by_code.insert({code.code, Loaded{loaded, {}}}).first;
  }
  *kernel = found->second.kernel;
  if (found->second.devices.count(device) == 0) {
    error = cudaKernelSetAttributeForDevice(*kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            code.shared_bytes, device);
    if (error == cudaSuccess) {
      found->second.devices.insert(device);
    }
  }
  return error;
}

bool has_whole_vectors(const AttentionArgs& args) {
  AttentionChoice choice{};
  choice.tactic = AttentionTactic::kDense;
  choice.key_splits = 1;
  const AttentionParams params = attention_params(args, choice, /*workspace=*/nullptr);
  return params.query_vectors && params.key_vectors && params.value_vectors &&
         params.output_vectors;
}

TritonAttentionArguments arguments_of(const AttentionParams& params) {
  const AttentionArgs& args = params.args;
  TritonAttentionArguments arguments{};
  arguments.query = args.query;
  arguments.key = args.key;
  arguments.value = args.value;
  arguments.gates = args.gates;
  arguments.output = args.output;
  arguments.rows = params.rows;
  arguments.counts = params.counts;
  arguments.ranges = args.key_ranges;
  arguments.query_strides = args.query_strides;
  arguments.key_strides = args.key_strides;
  arguments.value_strides = args.value_strides;
  arguments.output_strides = args.output_strides;
  arguments.ranges_batch = args.key_ranges == nullptr ? -1 : args.key_ranges_batch;
  arguments.pairs = args.batch * args.kv_heads;
  arguments.q_heads = args.q_heads;
  arguments.kv_heads = args.kv_heads;
  arguments.queries = args.queries;
  arguments.keys = args.keys;
  arguments.head_dim = args.head_dim;
  arguments.value_dim = args.value_dim;
  arguments.causal = args.causal ? 1 : 0;
  arguments.listed = params.rows != nullptr ? 1 : 0;
  arguments.scale_log2 = params.scale_log2;
  return arguments;
}

// Where each parameter is: a launch wants an address for each.
constexpr size_t kAddresses = 8 + 4 * 3 + 1, kNumbers = 10, kScratch = 2;
static_assert(sizeof(HeadStrides) == 3 * sizeof(int64_t) && sizeof(void*) == sizeof(int64_t));
static_assert(sizeof(TritonAttentionArguments) == 8 * (kAddresses + kScratch) + 4 * kNumbers);

std::array<void*, kAddresses + kNumbers + kScratch> parameters_of(
    TritonAttentionArguments& arguments) {
  std::array<void*, kAddresses + kNumbers + kScratch> parameters{};
  auto* at = reinterpret_cast<unsigned char*>(&arguments);
  for (size_t i = 0; i < parameters.size(); ++i) {
    parameters[i] = at;
    at += i >= kAddresses && i < kAddresses + kNumbers ? 4 : 8;
  }
  return parameters;
}

std::string list_of_kernels() {
  std::string lines;
  for (const TritonCode& code : triton_codes()) {
    const char* dtype = code.dtype == DType::kFloat16 ? "float16" : "bfloat16";
    lines += "sm_" + std::to_string(code.compute_capability) + " " + dtype + " " +
             std::to_string(code.columns) + "\n";
  }
  return lines;
}

}  // namespace

const TritonCode* find_triton_code(const AttentionArgs& args, const Device& device,
                                   int32_t key_splits, const char** reason) {
  if (args.mask.data != nullptr) {
    *reason = "the kernel of Triton takes no attn_mask";
    return nullptr;
  }
  if (args.nonpad_kv_seqlen != nullptr) {
    *reason = "the kernel of Triton takes no nonpad_kv_seqlen";
    return nullptr;
  }
  if (key_splits != 1) {
    *reason = "the kernel of Triton does not split keys";
    return nullptr;
  }
  if (!has_whole_vectors(args)) {
    *reason = "the kernel of Triton needs rows of whole, aligned 16 bytes";
    return nullptr;
  }
  const int32_t size = std::max(args.head_dim, args.value_dim);
  for (const TritonCode& code : triton_codes()) {
    if (code.compute_capability == device.compute_capability && code.dtype == args.dtype &&
        size <= code.columns) {
      return &code;
    }
  }
  *reason = "this library has no kernel of Triton for this GPU, dtype and head size";
  return nullptr;
}

Status load_triton_code(const TritonCode& code) {
  cudaKernel_t kernel = nullptr;
  const cudaError_t error = load_for_device(code, &kernel);
  if (error == cudaSuccess) {
    return Status::kOk;
  }
  return fail(Status::kCudaError,
              "%s: its code for compute capability %d cannot be loaded: cudaError_t %d.",
              kKernelText, code.compute_capability, static_cast<int>(error));
}

Status launch_triton_attention(const AttentionParams& params, const TritonCode& code,
                               cudaStream_t stream) {
  cudaKernel_t kernel = nullptr;
  cudaError_t error = load_for_device(code, &kernel);
  if (error == cudaSuccess && !loads_only()) {
    TritonAttentionArguments arguments = arguments_of(params);
    auto parameters = parameters_of(arguments);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(int64_t{arguments.pairs} *
                                                ceil_div(params.rows_per_pair, code.tile_rows)));
    config.blockDim = dim3(static_cast<unsigned>(code.threads));
    config.dynamicSmemBytes = static_cast<size_t>(code.shared_bytes);
    config.stream = stream;
    error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), parameters.data());
  }
  return launch_status(error, kKernelText);
}

}  // namespace moh::cuda

const char* moh_cuda_triton_kernels() {
  static thread_local std::string lines;
  lines = moh::cuda::list_of_kernels();
  return lines.c_str();
}
