#include "cuda/trt/core/fields.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/trt/core/text.h"

namespace moh::trt {
namespace {

std::string show(const FieldValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    return "'" + *text + "'";
  }
  const auto* number = std::get_if<int64_t>(&value);
  return number != nullptr ? make_text(*number) : make_text(std::get<double>(value));
}

Refusal wrong(const Field& field, const std::string& expected) {
  return Refusal("field ", field.name, " is ", show(field.value), "; expected ", expected, ".");
}

int32_t int_of(const Field& field) {
  const auto* value = std::get_if<int64_t>(&field.value);
  using Limits = std::numeric_limits<int32_t>;
  if (value == nullptr || *value < Limits::min() || *value > Limits::max()) {
    throw wrong(field, "an int of 32 bits");
  }
  return static_cast<int32_t>(*value);
}

float float_of(const Field& field) {
  const auto* value = std::get_if<double>(&field.value);
  if (value == nullptr || !std::isfinite(static_cast<float>(*value))) {
    throw wrong(field, "a finite float");
  }
  return static_cast<float>(*value);
}

template <typename T>
T within(const AttributeContract& attribute, const Field& field, T value) {
  const std::string expected = expected_instead(attribute, value);
  return expected.empty() ? value : throw wrong(field, expected);
}

}  // namespace

void Fields::check_names(const std::vector<FieldSpec>& known) const {
  for (const Field& field : fields_) {
    const auto same = [&](const FieldSpec& spec) { return field.name == spec.name; };
    if (std::none_of(known.begin(), known.end(), same)) {
      std::string names;
      for (const FieldSpec& spec : known) {
        names += (names.empty() ? "" : ", ") + std::string(spec.name);
      }
      throw Refusal("field ", field.name, " is unknown; expected one of ", names, ".");
    }
  }
}

int32_t Fields::int_value(const char* name, int32_t absent) const {
  const Field* field = find(name);
  return field == nullptr ? absent : int_of(*field);
}

float Fields::float_value(const char* name, float absent) const {
  const Field* field = find(name);
  return field == nullptr ? absent : float_of(*field);
}

int32_t Fields::int_value(const AttributeContract& attribute) const {
  const Field* field = find(attribute, "an int");
  return field == nullptr ? static_cast<int32_t>(attribute.absent)
                          : within(attribute, *field, int_of(*field));
}

float Fields::float_value(const AttributeContract& attribute) const {
  const Field* field = find(attribute, "a float");
  return field == nullptr ? static_cast<float>(attribute.absent)
                          : within(attribute, *field, float_of(*field));
}

int32_t Fields::choice(const AttributeContract& attribute) const {
  const Field* field = find(attribute, "a text");
  if (field == nullptr) {
    return static_cast<int32_t>(attribute.absent);
  }
  const auto* text = std::get_if<std::string>(&field->value);
  const auto* place = std::get_if<int64_t>(&field->value);
  const int64_t chosen = text != nullptr    ? choice_of(attribute, *text)
                         : place != nullptr ? *place
                                            : -1;
  if (chosen < 0 || chosen >= attribute.num_choices) {
    throw wrong(*field, choices_text(attribute));
  }
  return static_cast<int32_t>(chosen);
}

const Field* Fields::find(const char* name) const {
  const auto found = std::find_if(fields_.begin(), fields_.end(),
                                  [&](const Field& field) { return field.name == name; });
  return found == fields_.end() ? nullptr : &*found;
}

const Field* Fields::find(const AttributeContract& attribute, const char* type) const {
  const Field* field = find(attribute.name);
  if (field == nullptr && attribute.required) {
    throw Refusal("field ", attribute.name, " is missing; expected ", type, ".");
  }
  return field;
}

}  // namespace moh::trt
