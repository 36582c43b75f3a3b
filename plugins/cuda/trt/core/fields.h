// The values that a plugin is created from: attributes of an ONNX node, or what an engine holds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace moh::trt {

enum class FieldType { kInt, kFloat, kText };

struct FieldSpec {
  const char* name;
  FieldType type;
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
  int32_t Int(const char* name, std::optional<int32_t> absent = {}) const;
  float Float(const char* name, std::optional<float> absent = {}) const;
  bool Flag(const char* name, bool absent) const;  // 0 or 1
  // Index of the value, a text, in `names`. An engine holds the index itself.
  int32_t Choice(const char* name, const std::vector<std::string>& names, int32_t absent) const;

 private:
  const Field* Find(const char* name) const;

  std::vector<Field> fields_;
};

// What an engine keeps: numbers only.
struct Number {
  const char* name;
  std::variant<int32_t, float> value;
};

}  // namespace moh::trt
