# libmoh_plugin_registered.so: registers libmoh_plugin.so where a program only dlopens it. Needs TensorRT itself.
add_library(moh_plugin_registered SHARED ${CMAKE_CURRENT_LIST_DIR}/register.cc)
add_dependencies(moh_plugin_registered moh_plugin)
target_include_directories(moh_plugin_registered SYSTEM PRIVATE ${TENSORRT_INCLUDE_DIR} ${CUDA_INCLUDE_DIR})
target_link_libraries(moh_plugin_registered PRIVATE ${NVINFER_LIBRARY} ${CMAKE_DL_LIBS})
set_target_properties(moh_plugin_registered PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
