// What every header needs: how functions are declared so that one source serves g++, clang and NVRTC.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define STN_FUNCTION __device__ __forceinline__
#define STN_MEMBER __device__ __forceinline__
#else
#include <cmath>
#include <cstdint>
#include <type_traits>
// Internal linkage: the same source is compiled for several instruction sets, and no linker may
// choose one of the copies for all of them.
#define STN_FUNCTION [[maybe_unused]] static inline __attribute__((always_inline))
// For functions too large to inline everywhere; the compiler decides.
#define STN_LARGE_FUNCTION [[maybe_unused]] static __attribute__((noinline))
#define STN_MEMBER inline __attribute__((always_inline))
#endif

#include "numbers.h"

namespace stn {

// Axes are always in the order x, y, z, as coordinates are.
constexpr int kMaxAxes = 3;

// Pixels that one axis contributes to a sample.
constexpr int taps_of(Interpolation interpolation) {
  return interpolation == Interpolation::nearest ? 1 : interpolation == Interpolation::bilinear ? 2 : 4;
}

}  // namespace stn
