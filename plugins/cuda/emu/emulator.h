// CUDA on the CPU: the sources of the kernels, compiled by a C++ compiler, with a fiber for each
// thread. What differs from a GPU: docs in plugins/README.md.
#pragma once

#include "cuda/emu/copies.h"
#include "cuda/emu/launch.h"
#include "cuda/emu/matrices.h"
#include "cuda/emu/names.h"
#include "cuda/emu/warp.h"
