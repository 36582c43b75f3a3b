// The domains whose nodes run on kernels: moh, and moh.2, moh.3, ... for nodes whose function
// bodies are others than those of moh (moh_deploy/ops/domains.py). To a kernel they are all the
// same op.
#pragma once

#include <string>
#include <vector>

#include "ort/ort.h"

namespace moh::ort {

// Nodes with more bodies than these run as function bodies.
inline constexpr int kMostBodies = 3;

inline std::vector<Ort::CustomOpDomain> make_domains() {
  std::vector<Ort::CustomOpDomain> domains;
  domains.emplace_back("moh");
  for (int number = 2; number <= kMostBodies; ++number) {
    domains.emplace_back(("moh." + std::to_string(number)).c_str());
  }
  return domains;
}

}  // namespace moh::ort
