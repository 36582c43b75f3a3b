// CUDA's runtime, as far as Polygraphy calls it, over memory of the CPU.
#include <stdlib.h>
#include <string.h>

int cudaStreamCreate(void** stream) { *stream = (void*)77; return 0; }
int cudaStreamSynchronize(void* stream) { return 0; }
int cudaStreamDestroy(void* stream) { return 0; }
int cudaMalloc(void** memory, size_t bytes) { *memory = malloc(bytes + 1); return 0; }
int cudaFree(void* memory) { free(memory); return 0; }
int cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
  memcpy(to, from, bytes);
  return 0;
}
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) {
  return cudaMemcpy(to, from, bytes, kind);
}
