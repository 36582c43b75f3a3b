// What a custom-op library does when ONNX Runtime loads it.
#pragma once

#include <string>

#include "ort/ort.h"

#define MOH_EXPORT extern "C" __attribute__((visibility("default")))

namespace moh::ort {

// A runtime without our version of the table: said in its own terms, since success would mean that
// it silently goes on without these kernels.
inline OrtStatus* too_old(const OrtApiBase* base, const char* library, uint32_t api_version) {
  const std::string text = std::string(library) + " need ONNX Runtime 1." +
                           std::to_string(api_version) + " or newer; this is ONNX Runtime " +
                           base->GetVersionString() + ".";
  return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, text.c_str());
}

// Takes over the runtime's table of functions, then calls `add`, which returns an Ort::Status.
template <typename Add>
OrtStatus* register_with(const OrtApiBase* base, const char* library, const Add& add,
                         uint32_t api_version = kApiVersion) {
  const OrtApi* api = base->GetApi(api_version);
  if (api == nullptr) {
    return too_old(base, library, api_version);
  }
  if (Ort::Global<void>::api_ != api) {  // other sessions may be reading it
    Ort::InitApi(api);
  }
  return as_status(library, add);
}

}  // namespace moh::ort
