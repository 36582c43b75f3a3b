#include "cuda/launch/attention_heads.cuh"

template cudaError_t moh::cuda::launch_attend<32>(const AttentionParams&, AttentionBlock, dim3,
                                                  cudaStream_t);
template moh::cuda::AttendKernel moh::cuda::attend_kernel<32>(const AttentionArgs&, AttentionBlock);
