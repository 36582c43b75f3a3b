// libmoh_plugin_registered.so: for programs that load plugins by dlopen, such as Triton Inference
// Server. When it is loaded, it hands libmoh_plugin.so, which lies beside it, to TensorRT's plugin
// registry. It calls the registry, so it is of one major version of TensorRT.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <string>

namespace {

// Of the file that holds this function.
std::string folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&folder), &info) == 0) {
    return ".";
  }
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

__attribute__((constructor)) void register_plugin() {
  const std::string library = folder() + "/libmoh_plugin.so";
  if (getPluginRegistry()->loadLibrary(library.c_str()) == nullptr) {
    std::fprintf(stderr, "moh-deploy: TensorRT's plugin registry did not take %s.\n",
                 library.c_str());
  }
}

}  // namespace
