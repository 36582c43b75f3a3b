// What libmoh_plugin.so exports. It registers nothing by itself: TensorRT's loadLibrary asks for
// the creators, and the registry's own interface differs between versions.
#include <memory>
#include <vector>

#include "cuda/trt/core/table.h"
#include "cuda/trt/creator.h"
#include "cuda/trt/logging.h"
#include "moh/cuda.h"

#define MOH_EXPORT extern "C" __attribute__((visibility("default")))

MOH_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static const auto creators = [] {
    std::vector<std::unique_ptr<moh::trt::Creator>> made;
    for (const moh::trt::OpInfo* info : moh::trt::all_ops()) {
      made.push_back(std::make_unique<moh::trt::Creator>(*info));
    }
    return made;
  }();
  static const auto pointers = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> made;
    for (const auto& creator : creators) {
      made.push_back(creator.get());
    }
    return made;
  }();
  count = static_cast<int32_t>(pointers.size());
  return pointers.data();
}

MOH_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  moh::trt::set_logger_finder(finder);
}

// What the plugins take, as JSON (docs/tensorrt-plugin.md).
MOH_EXPORT const char* moh_plugin_table() {
  static const std::string table = moh::trt::table_as_json();
  return table.c_str();
}

// The major version of CUDA that a driver has to take.
MOH_EXPORT int moh_plugin_cuda() { return CUDART_VERSION / 1000; }

// Which attention kernels of Triton it holds, a line each: moh_cuda_triton_kernels.
MOH_EXPORT const char* moh_plugin_triton_kernels() { return moh_cuda_triton_kernels(); }

// The version of moh-deploy that this library belongs to.
MOH_EXPORT const char* moh_plugin_version() { return MOH_VERSION; }
