#include "cuda/trt/logging.h"

#include <atomic>
#include <cstdio>

namespace moh::trt {
namespace {

using Severity = nvinfer1::ILogger::Severity;

// TensorRT hands it over when it loads the library, and keeps it.
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger() {
  nvinfer1::ILoggerFinder* finder = logger_finder.load();
  return finder == nullptr ? nullptr : finder->findLogger();
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder.store(finder); }

void log(Severity severity, const std::string& text) noexcept {
  if (nvinfer1::ILogger* logger = find_logger()) {
    logger->log(severity, text.c_str());
  } else if (severity <= Severity::kWARNING) {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
}

void log_error(const std::string& subject, const char* what) noexcept {
  try {
    // Kernels begin with the op's name, and so does the subject.
    const std::string text = what, op = subject.substr(0, subject.find(' ')) + ": ";
    const bool named = text.compare(0, op.size(), op) == 0;
    log(Severity::kERROR, subject + ": " + (named ? text.substr(op.size()) : text));
  } catch (...) {
    log(Severity::kERROR, {});
  }
}

}  // namespace moh::trt
