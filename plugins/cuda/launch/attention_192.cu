#include "cuda/launch/attention_heads.cuh"

template cudaError_t moh::cuda::launch_attend<192>(const AttentionParams&, dim3, cudaStream_t);
