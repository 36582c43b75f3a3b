# libmoh_ort_cuda.so: the operators of ONNX Runtime's CUDA execution provider.
set(MOH_ORT_CUDA_SOURCES
  ${PROJECT_SOURCE_DIR}/nodes/aggregated_attention.cc
  ${PROJECT_SOURCE_DIR}/nodes/attention.cc
  ${PROJECT_SOURCE_DIR}/nodes/router.cc
  ${PROJECT_SOURCE_DIR}/ort/attention_op.cc
  ${PROJECT_SOURCE_DIR}/cuda/ort/cuda_backend.cc
  ${PROJECT_SOURCE_DIR}/cuda/ort/registration.cc
)

function(moh_add_ort_cuda target)
  add_library(${target} SHARED ${MOH_ORT_CUDA_SOURCES})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  target_include_directories(${target} SYSTEM PRIVATE ${ONNXRUNTIME_INCLUDE_DIR})
  target_compile_definitions(${target} PRIVATE MOH_VERSION="${MOH_VERSION}")
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  set_target_properties(${target} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()

if(MOH_CUDA)
  moh_add_ort_cuda(moh_ort_cuda)
  target_sources(moh_ort_cuda PRIVATE $<TARGET_OBJECTS:moh_cuda_kernels>)
  set_target_properties(moh_ort_cuda PROPERTIES LINKER_LANGUAGE CUDA)
  target_link_options(moh_ort_cuda PRIVATE -Wl,--exclude-libs,ALL)
endif()
