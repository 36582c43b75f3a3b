# Compiles the library of the CPU kernels for Linux on any architecture and any glibc from one on, by zig:
#
#   pip install ziglang
#   cmake -S plugins -B build/zig -DCMAKE_TOOLCHAIN_FILE=zig.cmake -DMOH_ZIG=FILE -DMOH_ZIG_TARGET=aarch64-linux-gnu.2.28
#
# MOH_ZIG is the program `zig` in the folder of the Python package. What wheels are made of is built this way
# (tools/build_kernels.py).
set(CMAKE_SYSTEM_NAME Linux)
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "${MOH_ZIG_TARGET}")
# CMake tries the compiler in projects of its own, which read this file again.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MOH_ZIG MOH_ZIG_TARGET)

set(CMAKE_CXX_COMPILER ${MOH_ZIG} c++ -target ${MOH_ZIG_TARGET})
# The same bytes wherever the sources lie, nothing that only debuggers read, and no checks that zig adds by itself.
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH source_root)
set(CMAKE_CXX_FLAGS_INIT "-ffile-prefix-map=${source_root}=. -g0 -fno-sanitize=undefined")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-Wl,-s")
# `zig ar` is two words, which CMAKE_AR takes none of.
set(CMAKE_CXX_ARCHIVE_CREATE "\"${MOH_ZIG}\" ar qcD <TARGET> <LINK_FLAGS> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "\"${MOH_ZIG}\" ranlib -D <TARGET>")
