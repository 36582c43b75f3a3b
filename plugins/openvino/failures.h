// Failures of ops while a model runs, which OpenVINO would swallow: whoever ran it asks for them.
#pragma once

#include <string>

namespace moh::openvino {

void fail(const std::string& reason);

}  // namespace moh::openvino
