// What the plugins take, as data: docs/tensorrt-plugin.md shows it.
#pragma once

#include <string>

namespace moh::trt {

std::string table_as_json();

}  // namespace moh::trt
