# Host code of the kernels, which includes them: compiled by nvcc for GPUs, and by the C++ compiler for
# the emulator. One file a line.
set(MOH_CUDA_SOURCES
)

# What the tests call besides: a kernel for each primitive, and the layout of the C interface.
set(MOH_CUDA_CONFORMANCE_SOURCES
  conformance/conformance.cu
  conformance/layout.cu
)
