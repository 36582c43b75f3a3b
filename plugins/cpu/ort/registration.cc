// The entry point that ONNX Runtime looks for in a custom-op library, and what the library says of
// itself.
//
// Session config entries, read when the library is registered:
//   moh.instruction_set   one of moh_cpu_instruction_sets(); default: the best
//   moh.compute_type      float32, or bfloat16: products of bfloat16 operands where the CPU has
//                         them; default: as the node's attribute compute_type says, or float32
//   moh.domains           see ort/domains.h
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "cpu/ort/cpu_backend.h"
#include "cpu/ort/nbits_product_op.h"
#include "cpu/ort/nbits_projection_op.h"
#include "cpu/ort/projection_op.h"
#include "cpu/ort/token_conv_op.h"
#include "ort/aggregated_attention_op.h"
#include "ort/attention_op.h"
#include "ort/domains.h"
#include "ort/every_dtype.h"
#include "ort/registration.h"
#include "ort/router_op.h"

namespace moh::ort {
namespace {

// The ops of one choice of kernels. Sessions point into it, and nothing tells when the last one is
// gone: kept for good.
struct Ops {
  // Without a compute type each node says its own.
  Ops(const cpu::Kernels& kernels, std::optional<cpu::Compute> compute)
      : rounding(kernels, cpu::Compute::kBFloat16, nullptr),
        backend(kernels, compute.value_or(cpu::Compute::kFloat32), compute ? nullptr : &rounding),
        attention(backend),
        aggregated_attention(backend),
        query_projection(kernels),
        output_projection(kernels),
        nbits_product(kernels),
        query_projection_nbits(kernels),
        output_projection_nbits(kernels),
        router(backend),
        token_conv(kernels) {}

  const CpuBackend rounding;
  const CpuBackend backend;
  InEveryDType<AttentionOp> attention;
  InEveryDType<AggregatedAttentionOp> aggregated_attention;
  InEveryDType<QueryProjectionOp> query_projection;
  InEveryDType<OutputProjectionOp> output_projection;
  NBitsProductOp nbits_product;
  QueryProjectionNBitsOp query_projection_nbits;
  OutputProjectionNBitsOp output_projection_nbits;
  InEveryDType<RouterOp> router;
  InEveryDType<TokenConvOp> token_conv;
  Domains domains{[this](Ort::CustomOpDomain& domain) {
    attention.add_to(domain);
    aggregated_attention.add_to(domain);
    query_projection.add_to(domain);
    output_projection.add_to(domain);
    domain.Add(&nbits_product);
    domain.Add(&query_projection_nbits);
    domain.Add(&output_projection_nbits);
    router.add_to(domain);
    token_conv.add_to(domain);
  }};
};

Ops& ops_for(const cpu::Kernels& kernels, std::optional<cpu::Compute> compute) {
  using Key = std::pair<const cpu::Kernels*, std::optional<cpu::Compute>>;
  static std::mutex mutex;
  static auto& made = *new std::map<Key, std::unique_ptr<Ops>>();
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Ops>& ops = made[{&kernels, compute}];
  if (ops == nullptr) {
    ops = std::make_unique<Ops>(kernels, compute);
  }
  return *ops;
}

const char* instruction_sets() {
  static const auto& names = *new std::string([] {
    std::string joined;
    for (const cpu::Kernels& kernels : cpu::usable_kernels()) {
      joined += (joined.empty() ? "" : ",") + std::string(kernels.instruction_set);
    }
    return joined;
  }());
  return names.c_str();
}

Ort::Status register_ops(OrtSessionOptions* options) {
  Ort::UnownedSessionOptions session(options);
  const std::string set = session.GetConfigEntryOrDefault("moh.instruction_set", "");
  const std::string type = session.GetConfigEntryOrDefault("moh.compute_type", "");
  const cpu::Kernels* kernels = cpu::find_kernels(set);
  if (kernels == nullptr) {
    return invalid_argument("moh.instruction_set is '", set,
                            "'; expected one that this machine has: ", instruction_sets(), ".");
  }
  std::optional<cpu::Compute> compute;
  if (type == "float32" || type == "bfloat16") {
    compute = type == "bfloat16" ? cpu::Compute::kBFloat16 : cpu::Compute::kFloat32;
  } else if (session.HasConfigEntry("moh.compute_type")) {
    return invalid_argument("moh.compute_type is '", type, "'; expected float32 or bfloat16.");
  }
  return ops_for(*kernels, compute).domains.add_to(session);
}

}  // namespace
}  // namespace moh::ort

MOH_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return moh::ort::register_with(base, "moh-deploy's CPU kernels",
                                 [&] { return moh::ort::register_ops(options); });
}

// The kernels of one of these sets, for the bindings to other runtimes that are of the same
// version: what they call is compiled once. Null if this machine has no set of that name.
MOH_EXPORT const moh::cpu::Kernels* moh_cpu_kernels(const char* instruction_set) {
  return moh::cpu::find_kernels(instruction_set);
}

// Names of the instruction sets that this machine has kernels for, best first, separated by commas.
MOH_EXPORT const char* moh_cpu_instruction_sets() { return moh::ort::instruction_sets(); }

// The version of moh-deploy that this library belongs to.
MOH_EXPORT const char* moh_cpu_version() { return MOH_VERSION; }
