// The instruction sets that kernels are compiled for, each in a namespace of its own. Include
// before any header of Highway.
#pragma once

#include <hwy/detect_compiler_arch.h>

#if HWY_ARCH_X86
// SSE2 (every x86-64), AVX2, AVX-512, AVX-512 with bfloat16.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_AVX3_SPR)
#else
// What the compiler is told to compile for. Not SVE: the micro-kernels keep vectors in arrays, so
// their size must be known.
#define HWY_COMPILE_ONLY_STATIC
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
