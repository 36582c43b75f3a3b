// How op_contract.h describes an op: its name, inputs and attributes, and what values those may
// have. Every binding of the kernels to a runtime reads and checks nodes by it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

namespace moh {

enum class InputType : uint8_t {
  kShared,   // the dtype that tensors of a node have in common
  kMask,     // bool or any float
  kLengths,  // int64
  kPacked,   // uint8: several numbers in a byte
};

struct InputContract {
  const char* name;
  bool optional;
  InputType type;
};

enum class AttributeType : uint8_t { kInt, kFloat, kText };

struct AttributeContract {
  static constexpr double kNoLimit = -std::numeric_limits<double>::infinity();

  const char* name;
  AttributeType type;
  bool required = true;
  double absent = 0;  // where it is not required; of a text, its place among the choices
  double at_least = kNoLimit, above = kNoLimit;
  bool odd = false;
  const char* const* choices = nullptr;  // of a number: 0, 1 and so on; null: no limit
  int32_t num_choices = 0;

  constexpr AttributeContract default_to(double value) const {
    AttributeContract changed = *this;
    changed.required = false;
    changed.absent = value;
    return changed;
  }

  constexpr AttributeContract with_at_least(double value) const {
    AttributeContract changed = *this;
    changed.at_least = value;
    return changed;
  }

  constexpr AttributeContract with_above(double value) const {
    AttributeContract changed = *this;
    changed.above = value;
    return changed;
  }

  constexpr AttributeContract with_odd() const {
    AttributeContract changed = *this;
    changed.odd = true;
    return changed;
  }

  template <size_t kCount>
  constexpr AttributeContract one_of(const char* const (&values)[kCount]) const {
    AttributeContract changed = *this;
    changed.choices = values;
    changed.num_choices = static_cast<int32_t>(kCount);
    return changed;
  }
};

struct OpContract {
  const char* name;
  const InputContract* inputs;
  size_t num_inputs;
  const AttributeContract* attributes;
  size_t num_attributes;
};

template <size_t kInputs, size_t kAttributes>
constexpr OpContract make_contract(const char* name, const InputContract (&inputs)[kInputs],
                                   const AttributeContract (&attributes)[kAttributes]) {
  return {name, inputs, kInputs, attributes, kAttributes};
}

// "weighted or mask".
inline std::string choices_text(const AttributeContract& attribute) {
  std::string text;
  for (int32_t i = 0; i < attribute.num_choices; ++i) {
    text += (i == 0 ? "" : " or ") + std::string(attribute.choices[i]);
  }
  return text;
}

// The place of a text among the choices; -1 if it is not there.
inline int32_t choice_of(const AttributeContract& attribute, const std::string& text) {
  for (int32_t i = 0; i < attribute.num_choices; ++i) {
    if (text == attribute.choices[i]) {
      return i;
    }
  }
  return -1;
}

// What a number should have been instead, such as "at least 1"; empty where it is fine.
inline std::string expected_instead(const AttributeContract& attribute, double value) {
  if (attribute.choices != nullptr && !(value >= 0 && value < attribute.num_choices)) {
    return choices_text(attribute);
  }
  if (value < attribute.at_least) {
    const auto least = static_cast<int64_t>(attribute.at_least);
    return least == 0 ? "0 or more" : "at least " + std::to_string(least);
  }
  if (attribute.above != AttributeContract::kNoLimit && !(value > attribute.above)) {
    return "more than " + std::to_string(static_cast<int64_t>(attribute.above));
  }
  if (attribute.odd && static_cast<int64_t>(value) % 2 == 0) {
    return "an odd number, so that the window has a centre";
  }
  return "";
}

}  // namespace moh
