#include "cuda/launch/attention_heads.cuh"

template cudaError_t moh::cuda::launch_attend<96>(const AttentionParams&, AttentionBlock, dim3,
                                                  cudaStream_t);
template moh::cuda::AttendKernel moh::cuda::attend_kernel<96>(const AttentionArgs&, AttentionBlock);
