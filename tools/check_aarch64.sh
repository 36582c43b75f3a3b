#!/bin/sh
# Compiles the kernel library for aarch64 and, under qemu, runs the contract on its kernels.
#
#   tools/check_aarch64.sh [folder]        default: build/aarch64
#
# On Debian: apt install cmake make g++-aarch64-linux-gnu qemu-user libonnxruntime-dev libhwy-dev
# PYTHON names an interpreter that has moh-deploy and its tests' requirements.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/aarch64}
python=${PYTHON:-.venv/bin/python}
compiler=aarch64-linux-gnu-g++

# Both libraries' headers know every architecture, but what lies beside them does not.
mkdir -p "$folder/include"
ln -sfn /usr/include/hwy "$folder/include/hwy"
ln -sfn /usr/include/onnxruntime "$folder/include/onnxruntime"
include=$(cd "$folder/include" && pwd)

cmake -S plugins -B "$folder/library" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$compiler \
    -DHIGHWAY_INCLUDE_DIR="$include" -DONNXRUNTIME_INCLUDE_DIR="$include/onnxruntime"
cmake --build "$folder/library" --parallel 2
$compiler -std=c++17 -O1 -Wall -Wextra -static -I plugins -I plugins/include \
    -o "$folder/kernel_driver" tools/cross/kernel_driver.cc "$folder/library/cpu/libmoh_cpu.a"

PYTHONPATH=. "$python" tools/cross/run_cases.py qemu-aarch64 "$folder/kernel_driver"
