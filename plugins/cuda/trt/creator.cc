#include "cuda/trt/creator.h"

#include "cuda/trt/convert.h"
#include "cuda/trt/logging.h"
#include "cuda/trt/plugin.h"

namespace moh::trt {

Creator::Creator(const OpInfo& info) : info_(info), known_(info.fields) {
  known_.push_back({kPresentInputs, AttributeType::kInt, false});
  for (const FieldSpec& spec : known_) {
    if (!spec.internal) {
      fields_.emplace_back(spec.name, nullptr, to_field_type(spec.type), 1);
    }
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

const char* Creator::getPluginName() const noexcept { return info_.name; }
const char* Creator::getPluginVersion() const noexcept { return kPluginVersion; }
const char* Creator::getPluginNamespace() const noexcept { return kPluginNamespace; }

nvinfer1::IPluginV3* Creator::createPlugin(const char* name,
                                           const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase phase) noexcept {
  const std::string layer = name == nullptr ? "" : name;
  return guarded(make_text(info_.name, " (", layer, ")"), static_cast<Plugin*>(nullptr), [&] {
    std::vector<Field> given;
    for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
      given.push_back(to_field(fields->fields[i]));
    }
    const Fields checked(std::move(given));
    checked.check_names(known_);
    return new Plugin(info_, layer, checked, phase);
  });
}

}  // namespace moh::trt
