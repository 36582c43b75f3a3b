# Host code of the kernels, which includes them: compiled by nvcc for GPUs, and by the C++ compiler for
# the emulator. One file a line.
set(MOH_CUDA_SOURCES
  launch/aggregated_attention.cu
  launch/aggregated_attention_128.cu
  launch/aggregated_attention_256.cu
  launch/aggregated_attention_32.cu
  launch/aggregated_attention_64.cu
  launch/attention.cu
  launch/attention_128.cu
  launch/attention_192.cu
  launch/attention_256.cu
  launch/attention_32.cu
  launch/attention_64.cu
  launch/attention_80.cu
  launch/attention_96.cu
  launch/attention_checks.cu
  launch/attention_choice.cu
  launch/attention_kernel.cu
  launch/attention_model.cu
  launch/attention_plan.cu
  launch/device.cu
  launch/router.cu
  launch/status.cu
  launch/synthetic_gates.cu
  launch/triton_attention.cu
)

# Left out where Triton writes the like of it, and where tests do.
set(MOH_CUDA_WITHOUT_TRITON
  launch/triton_code_none.cu
)

# What the tests call besides: a kernel for each primitive, and the layout of the C interface.
set(MOH_CUDA_CONFORMANCE_SOURCES
  conformance/conformance.cu
  conformance/layout.cu
  conformance/schedule.cu
)
