#include "cuda/trt/core/fields.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/trt/core/text.h"

namespace moh::trt {
namespace {

std::string Show(const FieldValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    return "'" + *text + "'";
  }
  const auto* number = std::get_if<int64_t>(&value);
  return number != nullptr ? Text(*number) : Text(std::get<double>(value));
}

Refusal Missing(const char* name, const char* type) {
  return Refusal("field ", name, " is missing; expected ", type, ".");
}

Refusal Wrong(const Field& field, const std::string& expected) {
  return Refusal("field ", field.name, " is ", Show(field.value), "; expected ", expected, ".");
}

}  // namespace

void Fields::CheckNames(const std::vector<FieldSpec>& known) const {
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

int32_t Fields::Int(const char* name, std::optional<int32_t> absent) const {
  const Field* field = Find(name);
  if (field == nullptr) {
    return absent ? *absent : throw Missing(name, "an int");
  }
  const auto* value = std::get_if<int64_t>(&field->value);
  using Limits = std::numeric_limits<int32_t>;
  if (value == nullptr || *value < Limits::min() || *value > Limits::max()) {
    throw Wrong(*field, "an int of 32 bits");
  }
  return static_cast<int32_t>(*value);
}

float Fields::Float(const char* name, std::optional<float> absent) const {
  const Field* field = Find(name);
  if (field == nullptr) {
    return absent ? *absent : throw Missing(name, "a float");
  }
  const auto* value = std::get_if<double>(&field->value);
  if (value == nullptr || !std::isfinite(static_cast<float>(*value))) {
    throw Wrong(*field, "a finite float");
  }
  return static_cast<float>(*value);
}

bool Fields::Flag(const char* name, bool absent) const {
  const int32_t value = Int(name, absent ? 1 : 0);
  if (value != 0 && value != 1) {
    throw Wrong(*Find(name), "0 or 1");
  }
  return value == 1;
}

int32_t Fields::Choice(const char* name, const std::vector<std::string>& names,
                       int32_t absent) const {
  const Field* field = Find(name);
  if (field == nullptr) {
    return absent;
  }
  const auto count = static_cast<int32_t>(names.size());
  if (const auto* text = std::get_if<std::string>(&field->value)) {
    const auto found = std::find(names.begin(), names.end(), *text);
    if (found != names.end()) {
      return static_cast<int32_t>(found - names.begin());
    }
  } else if (const auto* index = std::get_if<int64_t>(&field->value);
             index != nullptr && *index >= 0 && *index < count) {
    return static_cast<int32_t>(*index);
  }
  std::string expected;
  for (const std::string& each : names) {
    expected += (expected.empty() ? "" : " or ") + each;
  }
  throw Wrong(*field, expected);
}

const Field* Fields::Find(const char* name) const {
  const auto found = std::find_if(fields_.begin(), fields_.end(),
                                  [&](const Field& field) { return field.name == name; });
  return found == fields_.end() ? nullptr : &*found;
}

}  // namespace moh::trt
