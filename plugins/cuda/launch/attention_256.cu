#include "cuda/launch/attention_heads.cuh"

template cudaError_t moh::cuda::launch_attend<256>(const AttentionParams&, AttentionBlock, dim3,
                                                   cudaStream_t);
template moh::cuda::AttendKernel moh::cuda::attend_kernel<256>(const AttentionArgs&,
                                                               AttentionBlock);
