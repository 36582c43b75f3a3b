// The few calls to CUDA's driver that tell of a GPU, answered without one; and those that time work
// on it, by a clock that goes on where a program says so.
#include <cstddef>
#include <cstdlib>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// A launch from the CPU takes at least this.
constexpr float kEnqueueMs = 0.01f;
float now_ms = 0;
// What a graph will take that is captured now.
float* captured = nullptr;

}  // namespace

EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuDriverGetVersion(int* version) {
  const char* other = std::getenv("STAND_IN_CUDA");
  *version = other == nullptr ? 13000 : std::atoi(other);
  return 0;
}
EXPORT int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}
EXPORT int cuDeviceGet(int* device, int) {
  *device = 0;
  return 0;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = size_t{1} << 34;
  return 0;
}
EXPORT int cuDeviceGetName(char* name, int length, int) {
  const char* other = std::getenv("STAND_IN_GPU");
  std::strncpy(name, other == nullptr ? "Stand-in" : other, static_cast<size_t>(length));
  return 0;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : 9;
  return 0;
}

// ---- work: one context, and memory of the CPU

EXPORT void stand_in_run(float ms) {
  if (captured != nullptr) {
    *captured += ms;
  } else {
    now_ms += ms < kEnqueueMs ? kEnqueueMs : ms;
  }
}
EXPORT int cuStreamBeginCapture_v2(void* stream, int mode) {
  captured = new float(0);
  return stream == &now_ms && mode == 1 ? 0 : 400;
}
EXPORT int cuStreamEndCapture(void*, float** graph) {
  *graph = captured;
  captured = nullptr;
  return std::getenv("STAND_IN_NO_CAPTURE") == nullptr ? 0 : 900;
}
EXPORT int cuGraphInstantiateWithFlags(float** launched, const float* graph, unsigned long long) {
  *launched = new float(*graph);
  return 0;
}
EXPORT int cuGraphLaunch(const float* launched, void* stream) {
  now_ms += *launched < kEnqueueMs ? kEnqueueMs : *launched;
  return stream == &now_ms ? 0 : 400;
}
EXPORT int cuGraphExecDestroy(float* launched) {
  delete launched;
  return 0;
}
EXPORT int cuGetErrorName(int, const char** name) {
  *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
  return 0;
}
EXPORT int cuGraphDestroy(float* graph) {
  delete graph;
  return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &now_ms;
  return 0;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
EXPORT int cuCtxSetCurrent(void* context) { return context == &now_ms ? 0 : 201; }
EXPORT int cuStreamCreate(void** stream, unsigned) {
  *stream = &now_ms;
  return 0;
}
EXPORT int cuStreamDestroy_v2(void*) { return 0; }
EXPORT int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
  *address = reinterpret_cast<unsigned long long>(std::malloc(bytes));
  return 0;
}
EXPORT int cuMemFree_v2(unsigned long long address) {
  std::free(reinterpret_cast<void*>(address));
  return 0;
}
EXPORT int cuMemcpyHtoD_v2(unsigned long long address, const void* from, size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(address), from, bytes);
  return 0;
}
EXPORT int cuEventCreate(float** event, unsigned) {
  *event = new float(0);
  return 0;
}
EXPORT int cuEventDestroy_v2(float* event) {
  delete event;
  return 0;
}
EXPORT int cuEventRecord(float* event, void* stream) {
  *event = now_ms;
  return stream == &now_ms ? 0 : 400;
}
EXPORT int cuEventSynchronize(float*) { return 0; }
EXPORT int cuEventElapsedTime(float* ms, const float* start, const float* end) {
  *ms = *end - *start;
  return 0;
}
