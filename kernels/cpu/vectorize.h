// One binary for every x86-64. A function marked FULMEN_VECTORIZED is compiled for AVX-512, AVX2 with FMA, and plain
// x86-64. The loader picks the clone that the machine can run. Elsewhere (arm64) the baseline has what is needed. An
// OpenMP region is outlined before functions are cloned: mark the function that a region calls, not its caller.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FULMEN_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FULMEN_VECTORIZED
#endif

// For helpers of vectorized loops: a call would be compiled for the baseline.
#define FULMEN_INLINE inline __attribute__((always_inline))
