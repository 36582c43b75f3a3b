# libmoh_plugin_registered.so: registers libmoh_plugin.so where a program only dlopens it. Needs nothing of TensorRT.
add_library(moh_plugin_registered SHARED ${CMAKE_CURRENT_LIST_DIR}/register.cc)
add_dependencies(moh_plugin_registered moh_plugin)
target_compile_options(moh_plugin_registered PRIVATE -Wall -Wextra)
target_link_libraries(moh_plugin_registered PRIVATE ${CMAKE_DL_LIBS})
target_link_options(moh_plugin_registered PRIVATE -static-libstdc++ -static-libgcc LINKER:-z,defs)
set_target_properties(moh_plugin_registered PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
