#!/bin/sh
# Compiles the kernel library for aarch64 and, under qemu, runs the contract on its kernels.
#
#   [COMPILER=zig] tools/check_aarch64.sh [folder]        default: build/aarch64-$COMPILER
#
# On Debian: apt install cmake make qemu-user libonnxruntime-dev libhwy-dev and, for
# COMPILER=gcc, which is the default: g++-aarch64-linux-gnu
# COMPILER=zig, which makes wheels: libc6-arm64-cross, and pip install ziglang
# PYTHON names an interpreter that has moh-deploy and its tests' requirements, and ziglang.
set -eu
cd "$(dirname "$0")/.."
compiler=${COMPILER:-gcc}
folder=${1:-build/aarch64-$compiler}
python=${PYTHON:-.venv/bin/python}
case $compiler in
gcc)
    compile="aarch64-linux-gnu-g++ -static"
    set -- -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
    ;;
zig)
    zig=$("$python" -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))')
    target=aarch64-linux-gnu.2.28
    compile="$zig c++ -target $target"
    set -- -DCMAKE_TOOLCHAIN_FILE="$PWD/plugins/zig.cmake" -DMOH_ZIG="$zig" -DMOH_ZIG_TARGET=$target
    ;;
*)
    echo "COMPILER is '$compiler', expected gcc or zig" >&2
    exit 2
    ;;
esac

cmake -S plugins -B "$folder/library" -DCMAKE_BUILD_TYPE=Release "$@"
cmake --build "$folder/library" --parallel 2
# Word splitting is meant: compile is a command.
# shellcheck disable=SC2086
$compile -std=c++17 -O1 -Wall -Wextra -I plugins -I plugins/include \
    -o "$folder/kernel_driver" tools/cross/kernel_driver.cc "$folder/library/cpu/libmoh_cpu.a"

PYTHONPATH=. "$python" tools/cross/run_cases.py qemu-aarch64 -L /usr/aarch64-linux-gnu "$folder/kernel_driver"
