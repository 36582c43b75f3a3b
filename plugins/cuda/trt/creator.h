// What TensorRT makes plugins of one op with.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "cuda/trt/core/op.h"

namespace moh::trt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const OpInfo& info);

  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  const OpInfo& info_;
  std::vector<FieldSpec> known_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace moh::trt
