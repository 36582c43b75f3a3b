// An op as TensorRT needs to know it, without a word of TensorRT: so that it can be tested by
// itself.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/trt/core/fields.h"
#include "cuda/trt/core/tensor.h"
#include "moh/cuda.h"
#include "moh/op_contract.h"

namespace moh::trt {

class Op;

// A field of every op. TensorRT's parser refuses a node that leaves out an input in between, so a
// node may list the others only, and say which they are.
constexpr const char* kPresentInputs = "present_inputs";

struct InputInfo {
  const char* name;
  bool optional;
  InputType type;
  // A letter an axis, one text for each rank that it may have. None: a mask, of rank 1 to 4.
  std::vector<const char*> shapes;

  bool is_mask() const { return type == InputType::kMask; }
  bool takes(DType dtype) const {
    return dtype == DType::kInt64  ? type == InputType::kLengths
           : dtype == DType::kBool ? is_mask()
                                   : type != InputType::kLengths;
  }
};

struct AxisInfo {
  char letter;
  const char* text;
};

// The most that the kernels can do.
struct Limit {
  const char* name;
  char axis;
  int64_t most;
};

// An op as its contract has it, and what a plugin needs besides.
struct OpInfo {
  using Shapes = std::vector<const char*>;

  OpInfo(const OpContract& contract, const std::vector<Shapes>& shapes,
         const std::vector<FieldSpec>& more_fields, std::vector<AxisInfo> axes,
         std::vector<Limit> limits, std::unique_ptr<Op> (*create)(const Fields&));

  const char* name;
  std::vector<InputInfo> inputs;
  std::vector<FieldSpec> fields;  // the attributes, and those besides
  std::vector<AxisInfo> axes;
  std::vector<Limit> limits;
  std::unique_ptr<Op> (*create)(const Fields&);
};

// A size of the output: that of an input's axis, divided, multiplied and with something added.
struct OutputSize {
  size_t input;
  int axis;
  int64_t divide = 1, multiply = 1, add = 0;
};

// Sizes that a profile reaches from and to, and those that it is tuned for.
struct Profile {
  Inputs min, opt, max;
};

struct Call {
  std::array<const void*, kMaxInputs> inputs{};
  void* output = nullptr;
  void* workspace = nullptr;
  cuda::Stream stream = nullptr;
  bool timed = false;  // by TensorRT, on buffers of its own, in which gates mean nothing
};

// The attributes of one node, and what follows from the sizes of its inputs. Functions that take
// inputs refuse those that do not fit, as far as they are known.
class Op {
 public:
  virtual ~Op() = default;
  virtual std::unique_ptr<Op> clone() const = 0;

  // All that `create` needs to make the same again.
  virtual std::vector<Number> serialize() const = 0;
  virtual void check(const Inputs& inputs) const = 0;
  virtual std::vector<OutputSize> output(const Inputs& inputs) const = 0;

  // When an engine is built, for each profile.
  virtual void configure(const Profile& profile);
  virtual size_t workspace_bytes(const Profile&) const { return 0; }
  virtual std::vector<int32_t> tactics() const { return {}; }  // none: there is no choice

  // What it does while it is timed that it does not when results are wanted; none: it is the same.
  virtual std::string while_timed() const { return {}; }

  // When it runs.
  virtual void set_tactic(int32_t) {}
  virtual void set_shapes(const Inputs& inputs) = 0;
  virtual void run(const Call& call) const = 0;
};

inline void Op::configure(const Profile& profile) {
  check(profile.min);
  check(profile.opt);
  check(profile.max);
}

// Every op of the library.
const std::vector<const OpInfo*>& all_ops();

// Refuses what is not kOk, with the reason that the kernels give.
void check_status(cuda::Status status);

}  // namespace moh::trt
