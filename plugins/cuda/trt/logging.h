// Messages to the logger of the TensorRT that called.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace moh::trt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Without a logger: to stderr, unless it is less than a warning.
void log(nvinfer1::ILogger::Severity severity, const std::string& text) noexcept;

// What a caught exception says, as an error of `subject`.
void log_error(const std::string& subject, const char* what) noexcept;

// Calls what may throw, on behalf of TensorRT, which must not see an exception. Returns `failed` if
// it threw, and logs why.
template <class Result, class Function>
Result guarded(const std::string& subject, Result failed, const Function& function) noexcept {
  try {
    return function();
  } catch (const std::exception& error) {
    log_error(subject, error.what());
  } catch (...) {
    log_error(subject, "unknown error.");
  }
  return failed;
}

}  // namespace moh::trt
