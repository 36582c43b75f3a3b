#include "cuda/trt/core/table.h"

#include <cstring>
#include <vector>

#include "cuda/trt/core/ops.h"
#include "cuda/trt/core/text.h"

namespace moh::trt {
namespace {

std::string joined(const std::vector<std::string>& parts, char open, char close) {
  std::string text;
  for (const std::string& part : parts) {
    text += (text.empty() ? "" : ", ") + part;
  }
  return open + text + close;
}

std::string quoted(const std::string& text) { return '"' + text + '"'; }

std::string ranks_of(const InputInfo& input) {
  std::vector<std::string> ranks;
  for (const char* shape : input.shapes) {
    ranks.push_back(std::to_string(std::strlen(shape)));
  }
  return input.is_mask() ? "[1, 2, 3, 4]" : joined(ranks, '[', ']');
}

std::string dtypes_of(const InputInfo& input) {
  if (input.type == InputType::kLengths) {
    return "[\"int64\"]";
  }
  std::vector<std::string> names;
  if (input.is_mask()) {
    names.push_back(quoted("bool"));
  }
  for (const char* name : contract::kFloatTypeNames) {
    names.push_back(quoted(name));
  }
  return joined(names, '[', ']');
}

std::string input_as_json(const InputInfo& input) {
  return make_text("{\"name\": ", quoted(input.name),
                   ", \"optional\": ", input.optional ? "true" : "false",
                   ", \"ranks\": ", ranks_of(input), ", \"dtypes\": ", dtypes_of(input), "}");
}

std::string field_as_json(const FieldSpec& field) {
  const char* type = field.type == AttributeType::kInt     ? "int"
                     : field.type == AttributeType::kFloat ? "float"
                                                           : "string";
  return make_text("{\"name\": ", quoted(field.name), ", \"type\": ", quoted(type),
                   ", \"required\": ", field.required ? "true" : "false", "}");
}

std::string op_as_json(const OpInfo& op) {
  std::vector<std::string> inputs, fields, limits;
  for (const InputInfo& input : op.inputs) {
    inputs.push_back(input_as_json(input));
  }
  for (const FieldSpec& field : op.fields) {
    if (!field.internal) {
      fields.push_back(field_as_json(field));
    }
  }
  for (const Limit& limit : op.limits) {
    limits.push_back(make_text(quoted(limit.name), ": ", limit.most));
  }
  fields.push_back(field_as_json({kPresentInputs, AttributeType::kInt, false}));
  return make_text(quoted(op.name), ": {\"inputs\": ", joined(inputs, '[', ']'),
                   ", \"fields\": ", joined(fields, '[', ']'),
                   ", \"limits\": ", joined(limits, '{', '}'), "}");
}

}  // namespace

std::string table_as_json() {
  std::vector<std::string> ops;
  for (const OpInfo* op : all_ops()) {
    ops.push_back(op_as_json(*op));
  }
  return joined(ops, '{', '}');
}

}  // namespace moh::trt
