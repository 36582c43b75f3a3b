// The domains whose nodes run on kernels: moh, and moh.2, moh.3, ... for nodes whose function
// bodies are others than those of moh (moh_deploy/ops/op_names.py). To a kernel they are all the
// same op.
//
// Session config entry, read when a library is registered:
//   moh.domains   those in which the model has nodes, separated by commas; default: moh to moh.8
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>

#include "ort/ort.h"

namespace moh::ort {

// Of a session that does not say which it needs. Each takes a third of a millisecond to register.
inline std::string default_domains() {
  std::string names = "moh";
  for (int number = 2; number <= 8; ++number) {
    names += ",moh." + std::to_string(number);
  }
  return names;
}

inline bool is_domain(const std::string& name) {
  if (name == "moh") {
    return true;
  }
  const std::string number = name.rfind("moh.", 0) == 0 ? name.substr(4) : "";
  return !number.empty() && number.find_first_not_of("0123456789") == std::string::npos &&
         number[0] != '0' && number != "1";
}

// Any number of domains with the same ops. Sessions point into them, and nothing tells when the
// last one is gone: to be kept for good.
class Domains {
 public:
  // `fill` adds the ops to a domain.
  explicit Domains(std::function<void(Ort::CustomOpDomain&)> fill) : fill_(std::move(fill)) {}

  // Gives a session those that it asks for.
  Ort::Status add_to(Ort::UnownedSessionOptions session) {
    std::istringstream asked(session.GetConfigEntryOrDefault("moh.domains", default_domains()));
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::string name; std::getline(asked, name, ',');) {
      if (!is_domain(name)) {
        return invalid_argument("moh.domains has '", name,
                                "'; expected moh, moh.2, moh.3, ..., separated by commas.");
      }
      const auto [domain, is_new] = domains_.try_emplace(name, name.c_str());
      if (is_new) {
        fill_(domain->second);
      }
      session.Add(domain->second);
    }
    return Ort::Status();
  }

 private:
  const std::function<void(Ort::CustomOpDomain&)> fill_;
  std::mutex mutex_;
  std::map<std::string, Ort::CustomOpDomain> domains_;
};

}  // namespace moh::ort
