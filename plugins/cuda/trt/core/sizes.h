// Dtypes, ranks and sizes of inputs against what an op defines.
#pragma once

#include "cuda/trt/core/op.h"

namespace moh::trt {

// The size of each axis, as far as it is known.
class Sizes {
 public:
  explicit Sizes(const OpInfo& op) : op_(op) { sizes_.fill(kUnknown); }

  int64_t operator[](char axis) const { return sizes_[index(axis)]; }

  // Refuses another size than the one that is known.
  void set(char axis, int64_t size, const char* input);

  // Makes axis `part` that of axis `whole` divided into `count`; refuses what does not divide.
  void divide(char whole, int64_t count, char part, const char* input);

  void check_limits() const;

 private:
  static size_t index(char axis) { return static_cast<size_t>(axis) % 128; }
  const char* text_of(char axis) const;

  const OpInfo& op_;
  std::array<int64_t, 128> sizes_;
};

// Refuses missing inputs, dtypes and ranks that the op does not have.
void check_types(const OpInfo& op, const Inputs& inputs);

// Adds the sizes of all inputs but masks to those that are known.
void measure(const OpInfo& op, const Inputs& inputs, Sizes& sizes);

// Sets the ends of each axis to those that all inputs share. TensorRT finds them for each tensor by
// itself, from the ends of a sum's parts: `total - past` reaches from below zero to beyond `total`,
// although the queries of that size have as many tokens as the gates. Axes without a common size
// stay as they are, and are refused by those who read them.
void narrow(const OpInfo& op, Profile& profile);

// The dtype that all inputs share; float32 where none is known.
DType dtype_of(const OpInfo& op, const Inputs& inputs);

}  // namespace moh::trt
