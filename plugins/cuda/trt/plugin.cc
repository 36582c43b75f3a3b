#include "cuda/trt/plugin.h"

#include <elf.h>
#include <link.h>

#include <algorithm>

#include "cuda/trt/convert.h"
#include "cuda/trt/core/sizes.h"
#include "cuda/trt/logging.h"

namespace moh::trt {
namespace {

using nvinfer1::DimensionOperation;
using nvinfer1::IDimensionExpr;

constexpr int32_t kOk = 0, kFailed = 1;

// The digest that the linker put into this library: its note of type NT_GNU_BUILD_ID (elf.h).
// Empty if it was linked without.
std::string build_id() {
  struct Search {
    Elf64_Addr inside;
    std::string found;
  } search{reinterpret_cast<Elf64_Addr>(&build_id), {}};
  const auto look = [](dl_phdr_info* object, size_t, void* data) {
    Search& search = *static_cast<Search*>(data);
    const auto* first = object->dlpi_phdr;
    const auto* last = first + object->dlpi_phnum;
    const bool is_this = std::any_of(first, last, [&](const Elf64_Phdr& part) {
      return part.p_type == PT_LOAD &&
             search.inside - object->dlpi_addr - part.p_vaddr < part.p_memsz;
    });
    for (; is_this && first != last; ++first) {
      if (first->p_type != PT_NOTE) {
        continue;
      }
      // Notes stand one behind the other: sizes, type, then name and content, each padded to 4
      // bytes.
      const auto* at = reinterpret_cast<const unsigned char*>(object->dlpi_addr + first->p_vaddr);
      const auto* end = at + first->p_memsz;
      while (at + sizeof(Elf64_Nhdr) <= end) {
        const auto& note = *reinterpret_cast<const Elf64_Nhdr*>(at);
        const auto* content = at + sizeof(note) + (note.n_namesz + 3) / 4 * 4;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4) {
          for (uint32_t i = 0; i < note.n_descsz; ++i) {
            constexpr char kDigits[] = "0123456789abcdef";
            search.found += {kDigits[content[i] / 16], kDigits[content[i] % 16]};
          }
          return 1;
        }
        at = content + (note.n_descsz + 3) / 4 * 4;
      }
    }
    return is_this ? 1 : 0;
  };
  dl_iterate_phdr(look, &search);
  return search.found;
}

// Times in a cache are of one library: another may hold other kernels, or none of Triton's.
std::string identity_of(const std::vector<Number>& numbers) {
  static const std::string library = "moh-deploy " MOH_VERSION " " + build_id();
  std::string text = library;
  for (const Number& number : numbers) {
    text += std::visit([&](auto value) { return make_text(", ", number.name, "=", value); },
                       number.value);
  }
  return text;
}

const IDimensionExpr* apply(DimensionOperation operation, const IDimensionExpr* size, int64_t by,
                            int64_t neutral, nvinfer1::IExprBuilder& builder) {
  return by == neutral ? size : builder.operation(operation, *size, *builder.constant(by));
}

const IDimensionExpr* expression(const OutputSize& size, const nvinfer1::DimsExprs& input,
                                 nvinfer1::IExprBuilder& builder) {
  if (size.multiply == 0) {
    return builder.constant(size.add);
  }
  const IDimensionExpr* result = input.d[size.axis];
  result = apply(DimensionOperation::kFLOOR_DIV, result, size.divide, 1, builder);
  result = apply(DimensionOperation::kPROD, result, size.multiply, 1, builder);
  return apply(DimensionOperation::kSUM, result, size.add, 0, builder);
}

}  // namespace

Plugin::Plugin(const OpInfo& info, const std::string& layer, const Fields& fields,
               nvinfer1::TensorRTPhase phase)
    : info_(info),
      subject_(make_text(info.name, " (", layer, ")")),
      op_(info.create(fields)),
      present_inputs_(fields.int_value(kPresentInputs, 0)),
      timed_(phase == nvinfer1::TensorRTPhase::kBUILD),
      told_(std::make_shared<std::atomic<bool>>(false)),
      identity_(identity_of(numbers())) {}

Plugin::Plugin(const Plugin& other)
    : IPluginV3(),
      IPluginV3OneCore(),
      IPluginV3OneBuild(),
      IPluginV3OneRuntime(),
      info_(other.info_),
      subject_(other.subject_),
      op_(other.op_->clone()),
      present_inputs_(other.present_inputs_),
      timed_(other.timed_),
      ready_(other.ready_),
      told_(other.told_),
      slots_(other.slots_),
      identity_(other.identity_) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded(subject_, static_cast<Plugin*>(nullptr), [&] { return new Plugin(*this); });
}

const char* Plugin::getPluginName() const noexcept { return info_.name; }
const char* Plugin::getPluginVersion() const noexcept { return kPluginVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return kPluginNamespace; }

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* outputs, int32_t,
                                   const nvinfer1::DataType* inputs,
                                   int32_t input_count) const noexcept {
  return guarded(subject_, kFailed, [&] {
    op_->check(make_inputs(input_count, [&](size_t i, Tensor& t) { set_type(inputs[i], t); }));
    outputs[0] = inputs[0];  // the first input is no mask
    return kOk;
  });
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                                const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                                int32_t, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(subject_, kFailed, [&] {
    const std::vector<size_t> slots = find_slots(input_count);
    const auto sizes = op_->output(
        make_inputs(input_count, [&](size_t i, Tensor& t) { set_shape(inputs[i], t); }));
    outputs[0].nbDims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      size_t given = 0;
      while (slots[given] != sizes[i].input) {
        ++given;
      }
      outputs[0].d[i] = expression(sizes[i], inputs[given], builder);
    }
    return kOk;
  });
}

// Says no without a word: TensorRT asks for every format and dtype that there is.
bool Plugin::supportsFormatCombination(int32_t position,
                                       const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t) noexcept {
  return guarded(subject_, false, [&] {
    const nvinfer1::PluginTensorDesc& asked = tensors[position].desc;
    Tensor tensor;
    set_type(asked.type, tensor);
    if (asked.format != nvinfer1::TensorFormat::kLINEAR || !tensor.dtype) {
      return false;
    }
    // The output is as the first input is.
    const size_t slot =
        position < input_count ? find_slots(input_count)[static_cast<size_t>(position)] : 0;
    const InputInfo& info = info_.inputs[slot];
    const bool shared = info.type == InputType::kShared;
    return info.takes(*tensor.dtype) && (!shared || asked.type == tensors[0].desc.type);
  });
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs,
                                int32_t input_count, const nvinfer1::DynamicPluginTensorDesc*,
                                int32_t) noexcept {
  return guarded(subject_, kFailed, [&] {
    op_->configure(make_profile(inputs, input_count));
    // It is built all the same, as without a GPU; the warning says why the GPU is not used.
    cuda::Device device{};
    if (moh_cuda_device(&device) == cuda::Status::kDriverTooOld) {
      log(nvinfer1::ILogger::Severity::kWARNING, subject_ + ": " + moh_cuda_last_error());
    }
    return kOk;
  });
}

size_t Plugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs,
                                int32_t input_count, const nvinfer1::DynamicPluginTensorDesc*,
                                int32_t) const noexcept {
  return guarded(subject_, size_t{0},
                 [&] { return op_->workspace_bytes(make_profile(inputs, input_count)); });
}

int32_t Plugin::getNbTactics() noexcept {
  return guarded(subject_, 0, [&] { return static_cast<int32_t>(op_->tactics().size()); });
}

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  return guarded(subject_, kFailed, [&] {
    const std::vector<int32_t> valid = op_->tactics();
    for (size_t i = 0; i < valid.size() && static_cast<int32_t>(i) < count; ++i) {
      tactics[i] = valid[i];
    }
    return kOk;
  });
}

int32_t Plugin::setTactic(int32_t tactic) noexcept {
  return guarded(subject_, kFailed, [&] {
    op_->set_tactic(tactic);
    return kOk;
  });
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                              const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
  return guarded(subject_, kFailed, [&] {
    ready_ = false;
    slots_ = find_slots(input_count);
    op_->set_shapes(make_inputs(input_count, [&](size_t i, Tensor& tensor) {
      set_type(inputs[i].type, tensor);
      set_shape(inputs[i].dims, tensor);
    }));
    load_kernels();
    ready_ = true;
    return kOk;
  });
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc*, const nvinfer1::PluginTensorDesc*,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return guarded(subject_, kFailed, [&] {
    if (!ready_) {
      throw Refusal("enqueue without a shape; expected onShapeChange to have succeeded before.");
    }
    Call call;
    for (size_t i = 0; i < slots_.size(); ++i) {
      call.inputs[slots_[i]] = inputs[i];
    }
    call.output = outputs[0];
    call.workspace = workspace;
    call.stream = stream;
    call.timed = timed_;
    tell_once_that_it_is_timed();
    op_->run(call);
    return kOk;
  });
}

// A context that runs wants results, not times.
nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded(subject_, static_cast<Plugin*>(nullptr), [&] {
    auto attached = std::make_unique<Plugin>(*this);
    attached->timed_ = false;
    return attached.release();
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  using Collection = const nvinfer1::PluginFieldCollection;
  return guarded(subject_, static_cast<Collection*>(nullptr), [&]() -> Collection* {
    numbers_ = numbers();
    fields_.clear();
    for (const Number& number : numbers_) {
      const bool is_int = std::holds_alternative<int32_t>(number.value);
      const void* data = is_int ? static_cast<const void*>(std::get_if<int32_t>(&number.value))
                                : static_cast<const void*>(std::get_if<float>(&number.value));
      const auto type =
          is_int ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32;
      fields_.emplace_back(number.name, data, type, 1);
    }
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
    return &collection_;
  });
}

// Which inputs of the op the node's are.
std::vector<size_t> Plugin::find_slots(int32_t input_count) const {
  std::vector<size_t> slots;
  for (size_t i = 0; i < info_.inputs.size(); ++i) {
    const bool given = present_inputs_ == 0 ? static_cast<int32_t>(i) < input_count
                                            : (present_inputs_ >> i & 1) != 0;
    if (given) {
      slots.push_back(i);
    }
  }
  const bool more = present_inputs_ >> info_.inputs.size() != 0;
  if (more || static_cast<int32_t>(slots.size()) != input_count) {
    throw Refusal("there are ", input_count, " inputs, and field ", kPresentInputs, " is ",
                  present_inputs_, "; expected a bit for each input, of the ", info_.inputs.size(),
                  " that the op has.");
  }
  return slots;
}

// A run may be captured into a CUDA graph, into which not every kernel can be loaded.
void Plugin::load_kernels() const {
  struct LoadOnly {
    LoadOnly() { moh_cuda_load_only(true); }
    ~LoadOnly() { moh_cuda_load_only(false); }
  };
  // Nothing is read or written there.
  alignas(256) static char nowhere[256];
  Call call;
  for (const size_t slot : slots_) {
    call.inputs[slot] = nowhere;
  }
  call.output = call.workspace = nowhere;
  call.timed = timed_;
  const LoadOnly loading;
  op_->run(call);
}

// So that a reader of a build's log knows that its tactics were timed on gates that mean
// something.
void Plugin::tell_once_that_it_is_timed() {
  const std::string what = timed_ ? op_->while_timed() : std::string();
  if (!what.empty() && !told_->exchange(true)) {
    log(nvinfer1::ILogger::Severity::kINFO, subject_ + ": " + what);
  }
}

template <class Set>
Inputs Plugin::make_inputs(int32_t input_count, const Set& set) const {
  const std::vector<size_t> slots = find_slots(input_count);
  Inputs inputs;
  for (size_t i = 0; i < slots.size(); ++i) {
    inputs[slots[i]].present = true;
    set(i, inputs[slots[i]]);
  }
  return inputs;
}

Profile Plugin::make_profile(const nvinfer1::DynamicPluginTensorDesc* inputs,
                             int32_t input_count) const {
  const auto sized = [&](nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::* dims) {
    return make_inputs(input_count, [&](size_t i, Tensor& tensor) {
      set_type(inputs[i].desc.type, tensor);
      set_shape(inputs[i].*dims, tensor);
    });
  };
  using Range = nvinfer1::DynamicPluginTensorDesc;
  Profile profile{sized(&Range::min), sized(&Range::opt), sized(&Range::max)};
  narrow(info_, profile);
  return profile;
}

std::vector<Number> Plugin::numbers() const {
  std::vector<Number> numbers = op_->serialize();
  numbers.push_back({kPresentInputs, present_inputs_});
  return numbers;
}

}  // namespace moh::trt
