// Failures of ops while a model runs. OpenVINO would swallow them: the caller asks for them.
#pragma once

#include <string>

namespace moh::openvino {

void fail(const std::string& reason);

}  // namespace moh::openvino
