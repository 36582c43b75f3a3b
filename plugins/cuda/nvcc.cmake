# libmoh_cuda.so: the kernels behind their C interface, for every GPU from sm_80 on. Needs no GPU, and no CUDA
# runtime where it is loaded.
#
#   cmake -S plugins -B build/cuda -DMOH_CPU=OFF -DMOH_CUDA=ON && cmake --build build/cuda --parallel 4
set(MOH_CUDA_ARCHITECTURES 80 86 89 90 100 120 CACHE STRING "Compute capabilities to make machine code for")

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "moh-deploy: nvcc was not found. It comes with CUDA's toolkit, 12.8 or newer: put it on PATH, or -DCMAKE_CUDA_COMPILER=FILE")
endif()
# One PTX for all of them, which is also what later GPUs get: no kernel asks which one it is compiled for.
set(CMAKE_CUDA_ARCHITECTURES OFF)
list(TRANSFORM MOH_CUDA_ARCHITECTURES PREPEND sm_ OUTPUT_VARIABLE machine_codes)
list(JOIN machine_codes "," machine_codes)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

# Triton is needed to build its kernels, and nowhere else: the library holds their machine code.
set(MOH_TRITON_PYTHON "" CACHE FILEPATH "A Python that has Triton, to compile its attention kernels for Hopper and Blackwell; empty: without them")
if(MOH_TRITON_PYTHON)
  file(GLOB triton_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/triton/*.py)
  set(triton_code ${CMAKE_CURRENT_BINARY_DIR}/triton_code.cc)
  add_custom_command(OUTPUT ${triton_code} DEPENDS ${triton_sources} VERBATIM
    COMMAND ${MOH_TRITON_PYTHON} -B ${CMAKE_CURRENT_SOURCE_DIR}/triton/compile.py --output ${triton_code})
  message(STATUS "moh-deploy: attention kernels of Triton: compiled by ${MOH_TRITON_PYTHON}")
else()
  set(triton_code ${MOH_CUDA_WITHOUT_TRITON})
  message(STATUS "moh-deploy: attention kernels of Triton: none; they need a Python that has 3.4 or newer: -DMOH_TRITON_PYTHON=FILE")
endif()

# The plugins for runtimes are made of these objects, too.
add_library(moh_cuda_kernels OBJECT ${MOH_CUDA_SOURCES} ${triton_code})
target_include_directories(moh_cuda_kernels PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
set(cuda_options -gencode=arch=compute_80,code=[${machine_codes},compute_80] -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas)
target_compile_options(moh_cuda_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>)

add_library(moh_cuda SHARED $<TARGET_OBJECTS:moh_cuda_kernels> ${MOH_CUDA_CONFORMANCE_SOURCES})
target_include_directories(moh_cuda PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
target_compile_options(moh_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>)
set_target_properties(moh_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} LINKER_LANGUAGE CUDA)
target_link_options(moh_cuda PRIVATE -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/exports.map)

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
if(ONNXRUNTIME_INCLUDE_DIR)
  include(ort/ort.cmake)
endif()

find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h PATHS $ENV{TENSORRT_INCLUDE_DIR})
if(TENSORRT_INCLUDE_DIR)
  include(trt/trt.cmake)
  include(registered/registered.cmake)
endif()
