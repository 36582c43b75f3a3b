// Messages, and the exception that carries one.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace moh::trt {

template <typename... Parts>
std::string make_text(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// What the plugin was asked for is not what an op defines, or beyond its kernels. Thrown within the
// library only: what TensorRT calls catches it and logs it.
class Refusal : public std::runtime_error {
 public:
  template <typename... Parts>
  explicit Refusal(const Parts&... parts) : std::runtime_error(make_text(parts...)) {}
};

}  // namespace moh::trt
