// dlopens a library, as a server does, and counts our creators in the registry before and after.
//
//   registered LIBRARY
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <initializer_list>

namespace {

int count_ours() {
  int count = 0;
  for (const char* op : {"MoHRouter", "MoHAttention", "MoHAggregatedAttention"}) {
    count += getPluginRegistry()->getCreator(op, "1", "moh") != nullptr;
  }
  return count;
}

}  // namespace

int main(int, char** arguments) {
  std::printf("%d\n", count_ours());
  if (dlopen(arguments[1], RTLD_LAZY) == nullptr) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  std::printf("%d\n", count_ours());
  return 0;
}
