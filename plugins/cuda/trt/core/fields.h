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
  void CheckNames(const std::vector<FieldSpec>& known) const;

  bool Has(const char* name) const { return Find(name) != nullptr; }
  int32_t Int(const char* name, int32_t absent) const;
  float Float(const char* name, float absent) const;

  // Attributes of an op, within the limits of its contract.
  int32_t Int(const AttributeContract& attribute) const;
  float Float(const AttributeContract& attribute) const;
  bool Flag(const AttributeContract& attribute) const { return Int(attribute) == 1; }
  // The place of the value, a text, among the choices. An engine holds the place itself.
  int32_t Choice(const AttributeContract& attribute) const;

 private:
  const Field* Find(const char* name) const;
  const Field* Find(const AttributeContract& attribute, const char* type) const;

  std::vector<Field> fields_;
};

// What an engine keeps: numbers only.
struct Number {
  const char* name;
  std::variant<int32_t, float> value;
};

}  // namespace moh::trt
