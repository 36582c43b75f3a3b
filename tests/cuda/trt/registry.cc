// Loads a plugin library into the registry of a real TensorRT, and takes it out again. Compiled
// once for each major version: the registry's interface differs.
//
//   registry LIBNVINFER PLUGIN    prints a line a step: name, result
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>

using namespace nvinfer1;

namespace {

constexpr const char* kOps[] = {"MoHRouter", "MoHAttention", "MoHAggregatedAttention"};

IPluginCreatorV3One* find(IPluginRegistry& registry, const char* op) {
  return static_cast<IPluginCreatorV3One*>(registry.getCreator(op, "1", "moh"));
}

// Fields of a router; for the other ops they are wrong.
bool creates_router(IPluginCreatorV3One& creator) {
  const int32_t top_k = 2, shared = 1;
  const PluginField fields[] = {{"top_k", &top_k, PluginFieldType::kINT32, 1},
                                {"num_shared_heads", &shared, PluginFieldType::kINT32, 1}};
  const PluginFieldCollection collection{2, fields};
  IPluginV3* plugin = creator.createPlugin("layer", &collection, TensorRTPhase::kRUNTIME);
  const bool created = plugin != nullptr;
  delete plugin;
  return created;
}

int count_ours(IPluginRegistry& registry) {
  int count = 0;
  for (const char* op : kOps) {
    count += find(registry, op) != nullptr;
  }
  return count;
}

}  // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
  const auto get = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"));
  std::printf("version %d\n", version());
  IPluginRegistry& registry = *get();
  std::printf("before %d\n", count_ours(registry));
  IPluginRegistry::PluginLibraryHandle handle = registry.loadLibrary(arguments[2]);
  std::printf("loaded %d\n", handle != nullptr);
  std::printf("after %d\n", count_ours(registry));
  if (handle == nullptr) {
    return 0;
  }
  std::printf("kind %s\n", find(registry, kOps[0])->getInterfaceInfo().kind);
  for (const char* op : kOps) {
    std::printf("created %s %d\n", op, creates_router(*find(registry, op)));
  }
  registry.deregisterLibrary(handle);
  std::printf("deregistered %d\n", count_ours(registry));
  handle = registry.loadLibrary(arguments[2]);
  std::printf("again %d\n", count_ours(registry));
  registry.deregisterLibrary(handle);
  return 0;
}
