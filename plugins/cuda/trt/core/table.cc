#include "cuda/trt/core/table.h"

#include <cstring>
#include <vector>

#include "cuda/trt/core/ops.h"
#include "cuda/trt/core/text.h"

namespace moh::trt {
namespace {

std::string Joined(const std::vector<std::string>& parts, char open, char close) {
  std::string text;
  for (const std::string& part : parts) {
    text += (text.empty() ? "" : ", ") + part;
  }
  return open + text + close;
}

std::string Quoted(const std::string& text) { return '"' + text + '"'; }

std::string RanksOf(const InputInfo& input) {
  std::vector<std::string> ranks;
  for (const char* shape : input.shapes) {
    ranks.push_back(std::to_string(std::strlen(shape)));
  }
  return input.IsMask() ? "[1, 2, 3, 4]" : Joined(ranks, '[', ']');
}

std::string DTypesOf(const InputInfo& input) {
  std::vector<std::string> names;
  if (input.IsMask()) {
    names.push_back(Quoted("bool"));
  }
  for (const char* name : contract::kFloatTypeNames) {
    names.push_back(Quoted(name));
  }
  return Joined(names, '[', ']');
}

std::string InputAsJson(const InputInfo& input) {
  return Text("{\"name\": ", Quoted(input.name),
              ", \"optional\": ", input.optional ? "true" : "false",
              ", \"ranks\": ", RanksOf(input), ", \"dtypes\": ", DTypesOf(input), "}");
}

std::string FieldAsJson(const FieldSpec& field) {
  const char* type = field.type == AttributeType::kInt     ? "int"
                     : field.type == AttributeType::kFloat ? "float"
                                                           : "string";
  return Text("{\"name\": ", Quoted(field.name), ", \"type\": ", Quoted(type),
              ", \"required\": ", field.required ? "true" : "false", "}");
}

std::string OpAsJson(const OpInfo& op) {
  std::vector<std::string> inputs, fields, limits;
  for (const InputInfo& input : op.inputs) {
    inputs.push_back(InputAsJson(input));
  }
  for (const FieldSpec& field : op.fields) {
    if (!field.internal) {
      fields.push_back(FieldAsJson(field));
    }
  }
  for (const Limit& limit : op.limits) {
    limits.push_back(Text(Quoted(limit.name), ": ", limit.most));
  }
  fields.push_back(FieldAsJson({kPresentInputs, AttributeType::kInt, false}));
  return Text(Quoted(op.name), ": {\"inputs\": ", Joined(inputs, '[', ']'),
              ", \"fields\": ", Joined(fields, '[', ']'),
              ", \"limits\": ", Joined(limits, '{', '}'), "}");
}

}  // namespace

std::string TableAsJson() {
  std::vector<std::string> ops;
  for (const OpInfo* op : Ops()) {
    ops.push_back(OpAsJson(*op));
  }
  return Joined(ops, '{', '}');
}

}  // namespace moh::trt
