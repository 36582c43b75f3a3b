// Between TensorRT's words and ours.
#pragma once

#include <NvInferRuntime.h>

#include "cuda/trt/core/fields.h"
#include "cuda/trt/core/tensor.h"

namespace moh::trt {

void set_type(nvinfer1::DataType type, Tensor& tensor);
void set_shape(const nvinfer1::Dims& dims, Tensor& tensor);
void set_shape(const nvinfer1::DimsExprs& dims, Tensor& tensor);

// Refuses a field of another type than those that TensorRT's parser, or serialize(), makes.
Field to_field(const nvinfer1::PluginField& field);

nvinfer1::PluginFieldType to_field_type(AttributeType type);

}  // namespace moh::trt
