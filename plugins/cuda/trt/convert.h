// Between TensorRT's words and ours.
#pragma once

#include <NvInferRuntime.h>

#include "cuda/trt/core/fields.h"
#include "cuda/trt/core/tensor.h"

namespace moh::trt {

void SetType(nvinfer1::DataType type, Tensor& tensor);
void SetShape(const nvinfer1::Dims& dims, Tensor& tensor);
void SetShape(const nvinfer1::DimsExprs& dims, Tensor& tensor);

// Refuses a field of another type than those that TensorRT's parser, or Serialize, makes.
Field ToField(const nvinfer1::PluginField& field);

nvinfer1::PluginFieldType ToFieldType(AttributeType type);

}  // namespace moh::trt
