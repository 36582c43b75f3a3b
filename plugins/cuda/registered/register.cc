// libmoh_plugin_registered.so: for programs that load plugins by dlopen, such as Polygraphy and
// Triton Inference Server. When it is loaded, it hands libmoh_plugin.so, which lies beside it, to
// the plugin registry of each TensorRT in the process (ADR 118).
#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

namespace {

constexpr const char* kRuntimes[] = {"libnvinfer.so.", "libnvinfer_lean.so.",
                                     "libtensorrt_rtx.so."};
// Opened by name where a program has not loaded TensorRT yet: with LD_PRELOAD, and in Polygraphy,
// which loads plugins first.
constexpr const char* kUsual[] = {"libnvinfer.so.11", "libnvinfer.so.10", "libtensorrt_rtx.so.1"};

// Places of IPluginRegistry::loadLibrary among its virtual functions. TensorRT 11 left out four
// deprecated ones, as TensorRT-RTX does; within a major version the order is fixed.
constexpr int kPlaceIn10 = 10, kPlaceIn11 = 6;
constexpr int kRtx = 1;  // the first number of its version

int collect(dl_phdr_info* library, size_t, void* found) {
  const std::string path = library->dlpi_name;
  const std::string name = path.substr(path.rfind('/') + 1);
  for (const char* runtime : kRuntimes) {
    if (name.rfind(runtime, 0) == 0) {
      static_cast<std::vector<std::string>*>(found)->push_back(path);
    }
  }
  return 0;
}

std::string plugin_path() {
  Dl_info info;
  const bool is_known = dladdr(reinterpret_cast<void*>(&plugin_path), &info) != 0;
  const std::string path = is_known ? info.dli_fname : "";
  return path.substr(0, path.rfind('/') + 1) + "libmoh_plugin.so";
}

// Returns why the plugins are not in the registry of this TensorRT; empty: they are.
std::string register_in(void* runtime) {
  using Version = int (*)();
  using Registry = void* (*)();
  using LoadLibrary = void* (*)(void* registry, const char* path);
  const auto version = reinterpret_cast<Version>(dlsym(runtime, "getInferLibVersion"));
  const auto registry = reinterpret_cast<Registry>(dlsym(runtime, "getPluginRegistry"));
  if (version == nullptr || registry == nullptr) {
    return "the TensorRT in this process has no plugin registry";
  }
  const int major = version() / 10000;
  if (major != 10 && major != 11 && major != kRtx) {
    return "TensorRT is of version " + std::to_string(major) +
           "; expected 10, 11 or TensorRT-RTX 1";
  }
  void* const instance = registry();
  void** const functions = *static_cast<void***>(instance);
  const auto load = reinterpret_cast<LoadLibrary>(functions[major == 10 ? kPlaceIn10 : kPlaceIn11]);
  const std::string plugin = plugin_path();
  return load(instance, plugin.c_str()) != nullptr
             ? ""
             : "TensorRT's plugin registry did not take " + plugin;
}

__attribute__((constructor)) void register_everywhere() {
  // Looked up, not linked with: this library is of no version, and takes the TensorRT that the
  // program has, whose symbols Python hides from other libraries.
  std::vector<std::string> paths;
  dl_iterate_phdr(collect, &paths);
  if (paths.empty()) {
    paths.assign(std::begin(kUsual), std::end(kUsual));  // all that are there: any may be used
  }
  bool is_found = false;
  for (const std::string& path : paths) {
    void* const runtime = dlopen(path.c_str(), RTLD_LAZY);
    if (runtime == nullptr) {
      continue;
    }
    is_found = true;
    if (const std::string why = register_in(runtime); !why.empty()) {
      std::fprintf(stderr, "moh-deploy: %s.\n", why.c_str());
    }
  }
  if (!is_found) {
    std::fprintf(stderr, "moh-deploy: no TensorRT to register plugins in: load it first.\n");
  }
}

}  // namespace
