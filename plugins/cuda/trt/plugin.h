// A node of any of our ops, as TensorRT's IPluginV3: it passes on to the Op, in the Op's words.
#pragma once

#include <NvInferRuntime.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "cuda/trt/core/op.h"

namespace moh::trt {

// TensorRT 10.0 has no younger interface of what is needed at build time, and all have this one.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // Refuses fields that are wrong.
  Plugin(const OpInfo& info, const std::string& layer, const Fields& fields,
         nvinfer1::TensorRTPhase phase);
  Plugin(const Plugin& other);
  Plugin& operator=(const Plugin&) = delete;
  ~Plugin() override = default;

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count,
                             const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override;
  int32_t getNbTactics() noexcept override;
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
  const char* getTimingCacheID() noexcept override { return identity_.c_str(); }
  const char* getMetadataString() noexcept override { return identity_.c_str(); }

  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_types,
                  const nvinfer1::PluginTensorDesc* output_types, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  std::vector<size_t> find_slots(int32_t input_count) const;
  template <class Set>
  Inputs make_inputs(int32_t input_count, const Set& set) const;
  void load_kernels() const;
  void tell_once_that_it_is_timed();
  Profile make_profile(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count) const;
  std::vector<Number> numbers() const;

  const OpInfo& info_;
  const std::string subject_;  // of log messages: op and layer
  std::unique_ptr<Op> op_;
  int32_t present_inputs_;  // a bit for each input of the op; 0: the first ones, without a gap
  bool timed_;              // what runs is for TensorRT's clock, see Call::timed
  bool ready_ = false;      // onShapeChange was called
  std::shared_ptr<std::atomic<bool>> told_;  // of this plugin and its clones: that it is timed
  std::vector<size_t> slots_;
  std::string identity_;
  std::vector<Number> numbers_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "moh";

}  // namespace moh::trt
