// An op of ours as OpenVINO wants it described. All of it follows from the op's contract and from
// what reads its nodes (nodes/).
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <openvino/op/op.hpp>
#include <string>
#include <utility>
#include <vector>

#include "nodes/node.h"
#include "openvino/failures.h"
#include "openvino/kernels.h"

namespace moh::openvino {

// Throws std::invalid_argument for a type that no op of ours takes.
DType dtype_of(const ov::element::Type& type);
node::Shape shape_of(const ov::Shape& shape);

// `Reader` is one of nodes/: its contract, its kernel's arguments, and how they are read.
template <class Reader>
class Op : public ov::op::Op {
 public:
  static const ov::DiscreteTypeInfo& get_type_info_static() {
    static const ov::DiscreteTypeInfo info{Reader::kOp.name, "moh"};
    return info;
  }
  const ov::DiscreteTypeInfo& get_type_info() const override { return get_type_info_static(); }

  // `places`: for each input of the contract its place among `inputs`; -1 for an absent one.
  Op(const ov::OutputVector& inputs, std::vector<int> places, node::Attributes attributes,
     OnKernels on)
      : ov::op::Op(inputs),
        places_(std::move(places)),
        attributes_(std::move(attributes)),
        on_(on) {
    constructor_validate_and_infer_types();
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<Op>(inputs, places_, attributes_, on_);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    std::vector<double> values = attributes_.values();
    for (size_t i = 0; i < values.size(); ++i) {
      visitor.on_attribute(Reader::kOp.attributes[i].name, values[i]);
    }
    return true;
  }

  // Called while a model is read, reshaped and compiled: the place for all complaints, since what
  // `evaluate` throws is swallowed.
  void validate_and_infer_types() override {
    const size_t first = first_input();
    const auto& shape = get_input_partial_shape(first);
    if (!has_static_shapes()) {
      // Models are compiled once their inputs have sizes, so this says little.
      set_output_type(0, get_input_element_type(first), ov::PartialShape::dynamic(shape.rank()));
      return;
    }
    node::Tensors tensors(Reader::kOp.num_inputs);
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (const int place = places_[i]; place >= 0) {
        tensors[i] = {nullptr, dtype_of(get_input_element_type(place)),
                      shape_of(get_input_shape(place)), true};
      }
    }
    const node::Shape output = checked([&] {
      typename Reader::Args args{};
      return read(tensors, args);
    });
    set_output_type(0, get_input_element_type(first), ov::Shape(output.begin(), output.end()));
  }

  bool has_evaluate() const override { return true; }

  // Never throws, and never returns false, upon which OpenVINO ends the process.
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    try {
      compute(outputs[0], inputs);
    } catch (const std::exception& error) {
      fail(std::string(Reader::kOp.name) + " '" + get_friendly_name() + "': " + error.what());
      // No number that could be taken for a result: all bits set are NaN in every float.
      std::memset(outputs[0].data(), 0xff, outputs[0].get_byte_size());
    }
    return true;
  }

 private:
  size_t first_input() const {
    size_t first = 0;
    while (first + 1 < places_.size() && places_[first] < 0) {
      ++first;
    }
    return static_cast<size_t>(places_[first]);
  }

  bool has_static_shapes() const {
    for (size_t i = 0; i < get_input_size(); ++i) {
      if (get_input_partial_shape(i).is_dynamic() || get_input_element_type(i).is_dynamic()) {
        return false;
      }
    }
    return true;
  }

  node::Shape read(const node::Tensors& tensors, typename Reader::Args& args) const {
    node::check_inputs(Reader::kOp, tensors);
    return Reader::read(attributes_, tensors, args);
  }

  template <typename Call>
  node::Shape checked(const Call& call) const {
    try {
      return call();
    } catch (const std::invalid_argument& error) {
      NODE_VALIDATION_CHECK(this, false, Reader::kOp.name, ": ", error.what());
    }
    return {};
  }

  void compute(ov::Tensor& output, const ov::TensorVector& inputs) const {
    node::Tensors tensors(Reader::kOp.num_inputs);
    std::vector<std::vector<int64_t>> wide(tensors.size());  // of inputs of integers
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (const int place = places_[i]; place >= 0) {
        const ov::Tensor& tensor = inputs[static_cast<size_t>(place)];
        const void* data = tensor.data();
        if (tensor.get_element_type() == ov::element::i32) {
          const auto* narrow = static_cast<const int32_t*>(data);
          wide[i].assign(narrow, narrow + tensor.get_size());
          data = wide[i].data();
        }
        tensors[i] = {data, dtype_of(tensor.get_element_type()), shape_of(tensor.get_shape()),
                      true};
      }
    }
    typename Reader::Args args{};
    const node::Shape shape = read(tensors, args);
    output.set_shape(ov::Shape(shape.begin(), shape.end()));
    run(on_, args, output.data());
  }

  std::vector<int> places_;
  node::Attributes attributes_;
  OnKernels on_;
};

}  // namespace moh::openvino
