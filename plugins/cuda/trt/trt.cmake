# libmoh_plugin.so: the ops for TensorRT 10 and 11. Headers are needed, and no library of TensorRT.
file(GLOB_RECURSE MOH_TRT_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cc)

add_library(moh_plugin SHARED ${MOH_TRT_SOURCES} $<TARGET_OBJECTS:moh_cuda_kernels>)
target_include_directories(moh_plugin PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
target_include_directories(moh_plugin SYSTEM PRIVATE ${TENSORRT_INCLUDE_DIR} ${CUDA_INCLUDE_DIR})
target_compile_definitions(moh_plugin PRIVATE MOH_VERSION="${MOH_VERSION}")
target_compile_options(moh_plugin PRIVATE -Wall -Wextra)
set_target_properties(moh_plugin PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} LINKER_LANGUAGE CUDA)
# Needs no CUDA runtime and no C++ runtime of a certain version where it is loaded.
target_link_options(moh_plugin PRIVATE -static-libstdc++ -static-libgcc LINKER:-z,defs
  LINKER:--build-id LINKER:--version-script=${CMAKE_CURRENT_LIST_DIR}/exports.map)
