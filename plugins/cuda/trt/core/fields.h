// The values that a plugin is created from: attributes of an ONNX node, or what an engine holds.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "moh/contract.h"

namespace moh::trt {

// A field besides the attributes of an op.
struct FieldSpec {
  const char* name;
  AttributeType type;
  bool required;
  bool internal = false;  // in engines only
};

using FieldValue = std::variant<int64_t, double, std::string>;

struct Field {
  std::string name;
  FieldValue value;
};

// Fields by name. Everything that is wrong with one is a Refusal: its name, its value, and what was
// expected.
class Fields {
 public:
  explicit Fields(std::vector<Field> fields) : fields_(std::move(fields)) {}

  // Refuses a name that is not among those.
  void check_names(const std::vector<FieldSpec>& known) const;

  bool has(const char* name) const { return find(name) != nullptr; }
  int32_t int_value(const char* name, int32_t absent) const;
  float float_value(const char* name, float absent) const;

  // Attributes of an op, within the limits of its contract.
  int32_t int_value(const AttributeContract& attribute) const;
  float float_value(const AttributeContract& attribute) const;
  bool flag(const AttributeContract& attribute) const { return int_value(attribute) == 1; }
  // The place of the value, a text, among the choices. An engine holds the place itself.
  int32_t choice(const AttributeContract& attribute) const;

 private:
  const Field* find(const char* name) const;
  const Field* find(const AttributeContract& attribute, const char* type) const;

  std::vector<Field> fields_;
};

// What an engine keeps: numbers only.
struct Number {
  const char* name;
  std::variant<int32_t, float> value;
};

}  // namespace moh::trt
