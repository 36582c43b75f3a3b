// libmoh_openvino.so: what OpenVINO asks an extension for, and what its runner asks this one.
//
// The kernels are those of libmoh_ort_cpu.so of the same version. They are handed over by
// `moh_openvino_choose` before the extension is added.
#include <mutex>
#include <openvino/core/extension.hpp>
#include <openvino/core/version.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/op/add.hpp>
#include <openvino/op/matmul.hpp>
#include <sstream>

#include "nodes/aggregated_attention.h"
#include "nodes/attention.h"
#include "nodes/router.h"
#include "nodes/token_conv.h"
#include "openvino/op.h"

#define MOH_EXPORT extern "C" __attribute__((visibility("default")))

namespace moh::openvino {
namespace {

std::mutex mutex;

// All below is guarded by the mutex.
OnKernels chosen;
std::string domains;
int64_t failures = 0;
std::string last_failure;

using NodeContext = ov::frontend::NodeContext;

double read_attribute(const NodeContext& node, const AttributeContract& attribute) {
  if (!node.has_attribute(attribute.name)) {
    FRONT_END_OP_CONVERSION_CHECK(!attribute.required, "attribute ", attribute.name,
                                  " is absent; the op needs it.");
    return attribute.absent;
  }
  switch (attribute.type) {
    case AttributeType::kInt:
      return static_cast<double>(node.get_attribute<int64_t>(attribute.name));
    case AttributeType::kFloat:
      return node.get_attribute<float>(attribute.name);
    default: {
      const auto text = node.get_attribute<std::string>(attribute.name);
      const int32_t place = choice_of(attribute, text);
      FRONT_END_OP_CONVERSION_CHECK(place >= 0, attribute.name, " is '", text, "'; expected ",
                                    choices_text(attribute), ".");
      return place;
    }
  }
}

bool has_input(const NodeContext& node, size_t i) {
  // The frontend's word for an input in between that is absent.
  return i < node.get_input_size() &&
         std::string(node.get_input(static_cast<int>(i)).get_node()->get_type_info().name) !=
             "NullNode";
}

// Makes the op of a node in the model that is read.
template <class Reader>
ov::OutputVector convert(const NodeContext& node, const OnKernels& on) {
  ov::OutputVector inputs;
  std::vector<int> places(Reader::kOp.num_inputs, -1);
  for (size_t i = 0; i < places.size(); ++i) {
    if (has_input(node, i)) {
      const ov::Output<ov::Node> input = node.get_input(static_cast<int>(i));
      // The types that the model says. Later the CPU plugin makes bytes of bools, and 32 bits of
      // 64, which dtype_of has to take for these.
      const ov::element::Type type = input.get_element_type();
      FRONT_END_OP_CONVERSION_CHECK(type != ov::element::u8 && type != ov::element::i32,
                                    Reader::kOp.inputs[i].name, " is of type ",
                                    type.get_type_name(), "; expected bool, int64, ",
                                    contract::kFloatTypesText, ", as the op says.");
      places[i] = static_cast<int>(inputs.size());
      inputs.push_back(input);
    }
  }
  std::vector<double> values;
  for (size_t i = 0; i < Reader::kOp.num_attributes; ++i) {
    values.push_back(read_attribute(node, Reader::kOp.attributes[i]));
  }
  return {std::make_shared<Op<Reader>>(inputs, places,
                                       node::Attributes(Reader::kOp, std::move(values)), on)};
}

template <class Reader>
void add(std::vector<ov::Extension::Ptr>& extensions, const std::string& domain) {
  extensions.push_back(std::make_shared<ov::frontend::onnx::ConversionExtension>(
      Reader::kOp.name, domain,
      [on = chosen](const NodeContext& node) { return convert<Reader>(node, on); }));
}

// A projection is OpenVINO's own product of the types that the node has, closed heads included:
// what those get is unspecified, and our kernels are no faster where its products are.
ov::OutputVector convert_projection(const NodeContext& node) {
  ov::Output<ov::Node> y =
      std::make_shared<ov::op::v0::MatMul>(node.get_input(0), node.get_input(1), false, false);
  if (has_input(node, 3)) {
    y = std::make_shared<ov::op::v1::Add>(y, node.get_input(3));
  }
  return {y};
}

void add_projection(std::vector<ov::Extension::Ptr>& extensions, const OpContract& op,
                    const std::string& domain) {
  extensions.push_back(std::make_shared<ov::frontend::onnx::ConversionExtension>(
      op.name, domain, [](const NodeContext& node) { return convert_projection(node); }));
}

std::vector<ov::Extension::Ptr> all_extensions() {
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<ov::Extension::Ptr> extensions;
  std::istringstream names(domains);
  for (std::string domain; std::getline(names, domain, ',');) {
    add_projection(extensions, contract::query_projection::kOp, domain);
    add_projection(extensions, contract::output_projection::kOp, domain);
    if (domain.rfind("moh.dense", 0) == 0) {
      continue;  // all others are their function bodies there, on purpose
    }
    add<node::Attention>(extensions, domain);
    add<node::AggregatedAttention>(extensions, domain);
    add<node::Router>(extensions, domain);
    add<node::TokenConv>(extensions, domain);
  }
  return extensions;
}

}  // namespace

DType dtype_of(const ov::element::Type& type) {
  if (type == ov::element::f32) {
    return DType::kFloat32;
  }
  if (type == ov::element::f16) {
    return DType::kFloat16;
  }
  if (type == ov::element::bf16) {
    return DType::kBFloat16;
  }
  // The CPU plugin makes bytes of bools.
  if (type == ov::element::boolean || type == ov::element::u8) {
    return DType::kBool;
  }
  // And 32 bits of 64.
  if (type == ov::element::i64 || type == ov::element::i32) {
    return DType::kInt64;
  }
  node::refuse("an input is of type ", type.get_type_name(), "; expected bool, int64, ",
               contract::kFloatTypesText, ".");
}

node::Shape shape_of(const ov::Shape& shape) { return {shape.begin(), shape.end()}; }

void fail(const std::string& reason) {
  const std::lock_guard<std::mutex> lock(mutex);
  ++failures;
  last_failure = reason;
}

}  // namespace moh::openvino

OPENVINO_CREATE_EXTENSIONS(moh::openvino::all_extensions())

// What extensions that are added from now on run on: kernels, whether products may take bfloat16,
// and the domains of their nodes, separated by commas.
MOH_EXPORT void moh_openvino_choose(const moh::cpu::Kernels* kernels, int32_t bfloat16,
                                    const char* domains) {
  const std::lock_guard<std::mutex> lock(moh::openvino::mutex);
  moh::openvino::chosen = {
      kernels, bfloat16 != 0 ? moh::cpu::Compute::kBFloat16 : moh::cpu::Compute::kFloat32};
  moh::openvino::domains = domains;
}

// How many ops have failed in this process so far.
MOH_EXPORT int64_t moh_openvino_failures() {
  const std::lock_guard<std::mutex> lock(moh::openvino::mutex);
  return moh::openvino::failures;
}

// Why the last one did: up to `size` bytes with the end of the text.
MOH_EXPORT void moh_openvino_last_failure(char* text, size_t size) {
  const std::lock_guard<std::mutex> lock(moh::openvino::mutex);
  if (size != 0) {
    text[moh::openvino::last_failure.copy(text, size - 1)] = '\0';
  }
}

// The OpenVINO that it was built against, and the version of moh-deploy that it belongs to.
MOH_EXPORT const char* moh_openvino_release() { return MOH_OPENVINO_RELEASE; }
MOH_EXPORT const char* moh_openvino_version() { return MOH_VERSION; }
