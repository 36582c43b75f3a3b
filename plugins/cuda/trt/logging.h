// Messages to the logger of the TensorRT that called.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace moh::trt {

void SetLoggerFinder(nvinfer1::ILoggerFinder* finder);

// Without a logger: to stderr, unless it is less than a warning.
void Log(nvinfer1::ILogger::Severity severity, const std::string& text) noexcept;

// What a caught exception says, as an error of `subject`.
void LogError(const std::string& subject, const char* what) noexcept;

// Calls what may throw, on behalf of TensorRT, which must not see an exception. Returns `failed` if
// it threw, and logs why.
template <class Result, class Function>
Result Guarded(const std::string& subject, Result failed, const Function& function) noexcept {
  try {
    return function();
  } catch (const std::exception& error) {
    LogError(subject, error.what());
  } catch (...) {
    LogError(subject, "unknown error.");
  }
  return failed;
}

}  // namespace moh::trt
