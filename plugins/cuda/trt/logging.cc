#include "cuda/trt/logging.h"

#include <atomic>
#include <cstdio>

namespace moh::trt {
namespace {

using Severity = nvinfer1::ILogger::Severity;

// TensorRT hands it over when it loads the library, and keeps it.
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* FindLogger() {
  nvinfer1::ILoggerFinder* finder = logger_finder.load();
  return finder == nullptr ? nullptr : finder->findLogger();
}

}  // namespace

void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) { logger_finder.store(finder); }

void Log(Severity severity, const std::string& text) noexcept {
  if (nvinfer1::ILogger* logger = FindLogger()) {
    logger->log(severity, text.c_str());
  } else if (severity <= Severity::kWARNING) {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
}

void LogError(const std::string& subject, const char* what) noexcept {
  try {
    // Kernels begin with the op's name, and so does the subject.
    const std::string text = what, op = subject.substr(0, subject.find(' ')) + ": ";
    const bool named = text.compare(0, op.size(), op) == 0;
    Log(Severity::kERROR, subject + ": " + (named ? text.substr(op.size()) : text));
  } catch (...) {
    Log(Severity::kERROR, {});
  }
}

}  // namespace moh::trt
