// Where in a kernel something is called: default arguments of what kernels call, for reports.
#pragma once

#include <string>

namespace moh::cuda::emu {

struct Place {
  const char* file;
  int line;
};

std::string text(const Place& place);
bool operator==(const Place& a, const Place& b);
inline bool operator!=(const Place& a, const Place& b) { return !(a == b); }

}  // namespace moh::cuda::emu

// The caller's place, as the last argument of a function of the emulator.
#define MOH_PLACE ::moh::cuda::emu::Place place = {__builtin_FILE(), __builtin_LINE()}
