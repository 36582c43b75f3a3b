#include "cuda/trt/core/sizes.h"

#include <algorithm>
#include <cstring>

namespace moh::trt {
namespace {

// Kernels count in 32 bits, with room to round up; offsets have 64.
constexpr int64_t kMostOfAny = int64_t{1} << 30;

std::string ranks_text(const InputInfo& info) {
  std::string text;
  for (const char* shape : info.shapes) {
    text += (text.empty() ? "" : " or ") + std::to_string(std::strlen(shape));
  }
  return info.is_mask() ? "1 to 4" : text;
}

bool has_rank(const InputInfo& info, int rank) {
  const auto same = [&](const char* shape) { return static_cast<int>(std::strlen(shape)) == rank; };
  return info.is_mask() ? rank >= 1 && rank <= 4
                        : std::any_of(info.shapes.begin(), info.shapes.end(), same);
}

const char* shape_of_rank(const InputInfo& info, int rank) {
  for (const char* shape : info.shapes) {
    if (static_cast<int>(std::strlen(shape)) == rank) {
      return shape;
    }
  }
  return "";
}

void check_type(const InputInfo& info, const Tensor& tensor, const Tensor*& first) {
  if (tensor.type == nullptr) {
    return;
  }
  if (!tensor.dtype || !info.takes(*tensor.dtype)) {
    throw Refusal(info.name, " is ", tensor.type, "; expected ", info.is_mask() ? "bool, " : "",
                  info.type == InputType::kLengths ? "int64" : contract::kFloatTypesText, ".");
  }
  if (info.type != InputType::kShared) {
    return;
  }
  first = first == nullptr ? &tensor : first;
  if (tensor.dtype != first->dtype) {
    throw Refusal(info.name, " is ", tensor.type, "; expected ", first->type,
                  ", as the inputs before it are.",
                  info.optional ? " If the node leaves it out, it needs the field " : "",
                  info.optional ? kPresentInputs : "", info.optional ? "." : "");
  }
}

// Inputs that may have rank 3 or 4 have the same.
void check_rank(const InputInfo& info, const Tensor& tensor, int& common) {
  if (tensor.rank == kUnknown) {
    return;
  }
  if (!has_rank(info, tensor.rank)) {
    throw Refusal(info.name, " is ", shape_text(tensor), ", of rank ", tensor.rank, "; expected ",
                  ranks_text(info), ".");
  }
  if (info.shapes.size() < 2) {
    return;
  }
  common = common == kUnknown ? tensor.rank : common;
  if (tensor.rank != common) {
    throw Refusal(info.name, " is ", shape_text(tensor), ", of rank ", tensor.rank, "; expected ",
                  common, ", as the inputs before it have.");
  }
}

}  // namespace

void Sizes::set(char axis, int64_t size, const char* input) {
  int64_t& known = sizes_[index(axis)];
  if (size == kUnknown) {
    return;
  }
  if (known != kUnknown && known != size) {
    throw Refusal(text_of(axis), " of ", input, " is ", size, "; expected ", known, ".");
  }
  known = size;
}

void Sizes::divide(char whole, int64_t count, char part, const char* input) {
  const int64_t size = (*this)[whole];
  if (size == kUnknown) {
    return;
  }
  if (size % count != 0) {
    throw Refusal(text_of(whole), " of ", input, " is ", size, "; expected a multiple of its ",
                  count, " heads.");
  }
  set(part, size / count, input);
}

void Sizes::check_limits() const {
  for (const AxisInfo& axis : op_.axes) {
    if ((*this)[axis.letter] > kMostOfAny) {
      throw Refusal(axis.text, " is ", (*this)[axis.letter], "; expected up to 2^30.");
    }
  }
  for (const Limit& limit : op_.limits) {
    if ((*this)[limit.axis] > limit.most) {
      throw Refusal(limit.name, " is ", (*this)[limit.axis], "; the kernels have up to ",
                    limit.most, ".");
    }
  }
}

const char* Sizes::text_of(char axis) const {
  for (const AxisInfo& info : op_.axes) {
    if (info.letter == axis) {
      return info.text;
    }
  }
  return "size";
}

void check_types(const OpInfo& op, const Inputs& inputs) {
  const Tensor* first = nullptr;
  int common = kUnknown;
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    if (!inputs[i].present) {
      if (!op.inputs[i].optional) {
        throw Refusal("input ", op.inputs[i].name, " is missing.");
      }
      continue;
    }
    check_type(op.inputs[i], inputs[i], first);
    check_rank(op.inputs[i], inputs[i], common);
  }
}

void measure(const OpInfo& op, const Inputs& inputs, Sizes& sizes) {
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    const Tensor& tensor = inputs[i];
    if (!tensor.present || tensor.rank == kUnknown) {
      continue;
    }
    const char* shape = shape_of_rank(op.inputs[i], tensor.rank);
    for (size_t axis = 0; shape[axis] != '\0'; ++axis) {
      sizes.set(shape[axis], tensor.sizes[axis], op.inputs[i].name);
    }
  }
}

void narrow(const OpInfo& op, Profile& profile) {
  // The scores that a mask is added to, the last axis first: a mask may have fewer axes.
  constexpr const char* kScores = "TSHB";
  struct Axis {
    int64_t *min, *opt, *max;
  };
  std::array<std::vector<Axis>, 128> axes;
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    Tensor &min = profile.min[i], &opt = profile.opt[i], &max = profile.max[i];
    if (!min.present || min.rank == kUnknown || min.rank != opt.rank || min.rank != max.rank) {
      continue;
    }
    const bool is_mask = op.inputs[i].is_mask();
    if (is_mask && min.rank > 4) {
      continue;
    }
    const std::string shape = is_mask ? "" : shape_of_rank(op.inputs[i], min.rank);
    for (int axis = 0; axis < min.rank; ++axis) {
      const auto at = static_cast<size_t>(axis);
      if (is_mask ? max.sizes[at] == 1 : shape.empty()) {
        continue;  // one size of a mask stands for all of the scores'
      }
      const char letter = is_mask ? kScores[min.rank - 1 - axis] : shape[at];
      axes[static_cast<size_t>(letter) % axes.size()].push_back(
          {&min.sizes[at], &opt.sizes[at], &max.sizes[at]});
    }
  }
  for (const std::vector<Axis>& same : axes) {
    int64_t least = 0, most = kMostOfAny;
    for (const Axis& axis : same) {
      least = std::max(least, *axis.min);
      most = std::min(most, *axis.max);
    }
    for (const Axis& axis : same) {
      if (least <= most) {
        *axis.min = least;
        *axis.opt = std::clamp(*axis.opt, least, most);
        *axis.max = most;
      }
    }
  }
}

DType dtype_of(const OpInfo& op, const Inputs& inputs) {
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    if (inputs[i].present && inputs[i].dtype && op.inputs[i].type == InputType::kShared) {
      return *inputs[i].dtype;
    }
  }
  return DType::kFloat32;
}

}  // namespace moh::trt
