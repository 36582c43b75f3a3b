// Drives the plugins of a library the way TensorRT does, on a machine without it: a C interface
// for Python (host_plugin.py). Only headers are needed.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

#define HARNESS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// ---- what the library logs

class Collector final : public ILogger, public ILoggerFinder {
 public:
  void log(Severity severity, const char* text) noexcept override {
    text_ += "FEWIV"[static_cast<int>(severity)];
    text_ += std::string(" ") + text + "\n";
  }
  ILogger* findLogger() override { return this; }
  const char* take() {
    taken_ = text_;
    text_.clear();
    return taken_.c_str();
  }

 private:
  std::string text_, taken_;
};

Collector& the_collector() {
  static Collector collector;
  return collector;
}

// ---- sizes as expressions: a size is computed whether it is known to the plugin or not

struct Size final : IDimensionExpr {
  struct Impl final : apiv::VDimensionExpr {
    int64_t value = 0;
    bool known = true;
    bool isConstant() const override { return known; }
    int64_t getConstantValue() const override { return known ? value : INT64_MIN; }
    bool isSizeTensor() const override { return false; }
  } impl;
  Size(int64_t value, bool known) {
    impl.value = value;
    impl.known = known;
    mImpl = &impl;
  }
  ~Size() noexcept override = default;
};

int64_t compute(DimensionOperation operation, int64_t a, int64_t b) {
  switch (operation) {
    case DimensionOperation::kSUM:
      return a + b;
    case DimensionOperation::kPROD:
      return a * b;
    case DimensionOperation::kFLOOR_DIV:
      return a / b;
    default:
      return INT64_MIN;  // what the plugins do not use
  }
}

struct Builder final : IExprBuilder {
  struct Impl final : apiv::VExprBuilder {
    std::vector<std::unique_ptr<Size>> sizes;
    const IDimensionExpr* make(int64_t value, bool known) {
      sizes.push_back(std::make_unique<Size>(value, known));
      return sizes.back().get();
    }
    const IDimensionExpr* constant(int64_t value) override { return make(value, true); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& a,
                                    const IDimensionExpr& b) override {
      const auto& left = static_cast<const Size&>(a).impl;
      const auto& right = static_cast<const Size&>(b).impl;
      return make(compute(operation, left.value, right.value), left.known && right.known);
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                            const IDimensionExpr&) override {
      return nullptr;
    }
  } impl;
  Builder() { mImpl = &impl; }
  ~Builder() noexcept override = default;
};

// ---- the library

struct Library {
  IPluginCreatorInterface* const* creators = nullptr;
  int32_t count = 0;

  IPluginCreatorV3One* at(int32_t index) const {
    return static_cast<IPluginCreatorV3One*>(creators[index]);
  }
  IPluginCreatorV3One* find(const char* op) const {
    for (int32_t i = 0; i < count; ++i) {
      if (std::strcmp(at(i)->getPluginName(), op) == 0) {
        return at(i);
      }
    }
    return nullptr;
  }
};

template <class Capability>
Capability* as(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneCore* core(IPluginV3* plugin) {
  return as<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
}
IPluginV3OneBuild* build(IPluginV3* plugin) {
  return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

}  // namespace

// Returns null if it is no library of plugins.
HARNESS_EXPORT const Library* harness_open(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    the_collector().log(ILogger::Severity::kERROR, dlerror());
    return nullptr;
  }
  auto* get =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(handle, "getCreators"));
  auto* find = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"));
  if (get == nullptr || find == nullptr) {
    return nullptr;
  }
  find(&the_collector());
  auto* library = new Library;
  library->creators = get(library->count);
  return library;
}

HARNESS_EXPORT const char* harness_take_log() { return the_collector().take(); }

HARNESS_EXPORT int32_t harness_count(const Library* library) { return library->count; }

HARNESS_EXPORT const char* harness_kind(const Library* library, int32_t index) {
  return library->at(index)->getInterfaceInfo().kind;
}

// Name, version, namespace and names of the fields of a creator, separated by spaces.
HARNESS_EXPORT const char* harness_describe(const Library* library, int32_t index) {
  static std::string text;
  IPluginCreatorV3One* creator = library->at(index);
  text = std::string(creator->getPluginName()) + " " + creator->getPluginVersion() + " " +
         creator->getPluginNamespace();
  const PluginFieldCollection* fields = creator->getFieldNames();
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    text += std::string(" ") + fields->fields[i].name;
  }
  return text.c_str();
}

HARNESS_EXPORT IPluginV3* harness_create(const Library* library, const char* op, const char* layer,
                                         const PluginField* fields, int32_t count, int32_t phase) {
  const PluginFieldCollection collection{count, fields};
  return library->find(op)->createPlugin(layer, &collection, static_cast<TensorRTPhase>(phase));
}

HARNESS_EXPORT void harness_destroy(IPluginV3* plugin) { delete plugin; }
HARNESS_EXPORT IPluginV3* harness_clone(IPluginV3* plugin) { return plugin->clone(); }
HARNESS_EXPORT IPluginV3* harness_attach(IPluginV3* plugin) {
  return runtime(plugin)->attachToContext(nullptr);
}

HARNESS_EXPORT const char* harness_name(IPluginV3* plugin) {
  static std::string text;
  text = std::string(core(plugin)->getPluginName()) + " " + core(plugin)->getPluginVersion() + " " +
         core(plugin)->getPluginNamespace();
  return text.c_str();
}

HARNESS_EXPORT const char* harness_timing_id(IPluginV3* plugin) {
  return build(plugin)->getTimingCacheID();
}

HARNESS_EXPORT int32_t harness_output_type(IPluginV3* plugin, const DataType* inputs, int32_t count,
                                           DataType* output) {
  return build(plugin)->getOutputDataTypes(output, 1, inputs, count);
}

// `known`: for each size of each input, kMAX_DIMS an input, whether the plugin may look at it.
HARNESS_EXPORT int32_t harness_output_shape(IPluginV3* plugin, const Dims* inputs,
                                            const uint8_t* known, int32_t count, Dims* output) {
  Builder builder;
  std::vector<DimsExprs> shapes(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    shapes[i].nbDims = inputs[i].nbDims;
    for (int32_t axis = 0; axis < inputs[i].nbDims; ++axis) {
      shapes[i].d[axis] =
          builder.impl.make(inputs[i].d[axis], known[i * Dims::MAX_DIMS + axis] != 0);
    }
  }
  DimsExprs shape{};
  const int32_t status =
      build(plugin)->getOutputShapes(shapes.data(), count, nullptr, 0, &shape, 1, builder);
  output->nbDims = shape.nbDims;
  for (int32_t axis = 0; status == 0 && axis < shape.nbDims; ++axis) {
    output->d[axis] = static_cast<const Size*>(shape.d[axis])->impl.value;
  }
  return status;
}

HARNESS_EXPORT int32_t harness_supports(IPluginV3* plugin, int32_t position,
                                        const DynamicPluginTensorDesc* tensors, int32_t inputs) {
  return build(plugin)->supportsFormatCombination(position, tensors, inputs, 1) ? 1 : 0;
}

HARNESS_EXPORT int32_t harness_configure(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors,
                                         int32_t inputs) {
  return build(plugin)->configurePlugin(tensors, inputs, tensors + inputs, 1);
}

HARNESS_EXPORT uint64_t harness_workspace(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors,
                                          int32_t inputs) {
  return build(plugin)->getWorkspaceSize(tensors, inputs, tensors + inputs, 1);
}

// Returns how many there are; writes up to 8.
HARNESS_EXPORT int32_t harness_tactics(IPluginV3* plugin, int32_t* tactics) {
  const int32_t count = build(plugin)->getNbTactics();
  return build(plugin)->getValidTactics(tactics, count) == 0 ? count : -1;
}

HARNESS_EXPORT int32_t harness_set_tactic(IPluginV3* plugin, int32_t tactic) {
  return runtime(plugin)->setTactic(tactic);
}

HARNESS_EXPORT int32_t harness_on_shape_change(IPluginV3* plugin, const PluginTensorDesc* tensors,
                                               int32_t inputs) {
  return runtime(plugin)->onShapeChange(tensors, inputs, tensors + inputs, 1);
}

HARNESS_EXPORT int32_t harness_enqueue(IPluginV3* plugin, const PluginTensorDesc* tensors,
                                       int32_t inputs, const void* const* data, void* output,
                                       void* workspace) {
  return runtime(plugin)->enqueue(tensors, tensors + inputs, data, &output, workspace, nullptr);
}

HARNESS_EXPORT const PluginFieldCollection* harness_serialize(IPluginV3* plugin) {
  return runtime(plugin)->getFieldsToSerialize();
}

// Sizes that host_plugin.py assumes: PluginField, PluginTensorDesc, DynamicPluginTensorDesc.
HARNESS_EXPORT void harness_struct_sizes(uint64_t* sizes) {
  sizes[0] = sizeof(PluginField);
  sizes[1] = sizeof(PluginTensorDesc);
  sizes[2] = sizeof(DynamicPluginTensorDesc);
}
