#include "cuda/emu/control.h"

namespace moh::cuda::emu {
namespace {

LaunchHook hook = nullptr;
CodeHook hook_of_code = nullptr;

}  // namespace

Options& options() {
  static Options value;
  return value;
}

Counts& counts() {
  static Counts value;
  return value;
}

BankConflicts& bank_conflicts() {
  static BankConflicts value;
  return value;
}

std::string& last_error() {
  static std::string value;
  return value;
}

LaunchHook launch_hook() { return hook; }
CodeHook code_hook() { return hook_of_code; }

}  // namespace moh::cuda::emu

using namespace moh::cuda::emu;

void moh_emulator_configure(const Options* chosen) {
  options() = *chosen;
  counts() = {};
  bank_conflicts().clear();
  last_error().clear();
}

void moh_emulator_counts(Counts* result) { *result = counts(); }

const char* moh_emulator_error() { return last_error().c_str(); }

void moh_emulator_set_launch_hook(LaunchHook chosen) { hook = chosen; }
void moh_emulator_set_code_hook(CodeHook chosen) { hook_of_code = chosen; }
