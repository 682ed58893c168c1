// What every header needs: how functions are declared so that one source serves g++, clang and NVRTC.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define STN_FUNCTION __device__ __forceinline__
#define STN_MEMBER __device__ __forceinline__
#define STN_ROLLED _Pragma("unroll 1")
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
// In front of loops that are not to be unrolled: they are seldom taken, or would take too many registers.
#define STN_ROLLED _Pragma("GCC unroll 1")
#endif

#include "numbers.h"

namespace stn {

// Axes are always in the order x, y, z, as coordinates are.
constexpr int kMaxAxes = 3;

// Pixels that one axis contributes to a sample.
constexpr int taps_of(Interpolation interpolation) {
  return interpolation == Interpolation::nearest ? 1 : interpolation == Interpolation::bilinear ? 2 : 4;
}

// Indices first <= index < last.
template <class Index>
struct IndexRange {
  Index first, last;

  STN_MEMBER Index size() const { return last > first ? last - first : 0; }
};

// Of numbers, not vectors: `sampling.h` has those.
template <class V>
STN_FUNCTION V magnitude(V x) {
  return x < V(0) ? -x : x;
}

template <class V>
STN_FUNCTION V smaller(V a, V b) {
  return b < a ? b : a;
}

template <class V>
STN_FUNCTION V larger(V a, V b) {
  return a < b ? b : a;
}

}  // namespace stn
