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

// The driver keeps a context for each thread, and refuses work without one.
constexpr int kInvalidContext = 201;
int retained = 0;
thread_local bool is_current = false;
int status() { return retained > 0 && is_current ? 0 : kInvalidContext; }

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
  if (const int refused = status()) {
    return refused;
  }
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
EXPORT int cuGetErrorName(int code, const char** name) {
  *name = code == kInvalidContext ? "CUDA_ERROR_INVALID_CONTEXT"
                                  : "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
  return 0;
}
EXPORT int cuGraphDestroy(float* graph) {
  delete graph;
  return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
  ++retained;
  *context = &now_ms;
  return 0;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
  --retained;
  return 0;
}
EXPORT int cuCtxSetCurrent(void* context) {
  is_current = context == &now_ms;
  return status();
}
EXPORT int cuStreamCreate(void** stream, unsigned) {
  *stream = &now_ms;
  return status();
}
EXPORT int cuStreamDestroy_v2(void*) { return 0; }
EXPORT int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
  if (const int refused = status()) {
    return refused;
  }
  *address = reinterpret_cast<unsigned long long>(std::malloc(bytes));
  return 0;
}
EXPORT int cuMemFree_v2(unsigned long long address) {
  std::free(reinterpret_cast<void*>(address));
  return 0;
}
EXPORT int cuMemcpyHtoD_v2(unsigned long long address, const void* from, size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(address), from, bytes);
  return status();
}
EXPORT int cuEventCreate(float** event, unsigned) {
  *event = new float(0);
  return status();
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
