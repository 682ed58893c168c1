// What the kernels need of CUDA, under NVRTC; under g++ the tests emulate it.
#pragma once

#include "../shared/preimage.h"

namespace stn {

using int64 = long long;
using uint64 = unsigned long long;

constexpr int kThreads = STN_THREADS;  // of a thread block
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// The only contraction there is: the compiler is told not to make its own, so that a coordinate has the
// same bits in every kernel.
STN_FUNCTION float fused(float a, float b, float c) { return ::fmaf(a, b, c); }
STN_FUNCTION double fused(double a, double b, double c) { return ::fma(a, b, c); }

STN_FUNCTION float remainder_of(float x, float period) { return ::fmodf(x, period); }
STN_FUNCTION double remainder_of(double x, double period) { return ::fmod(x, period); }

// Exchanges halves of a warp, then quarters, and so on: every lane ends up with the same sum.
STN_FUNCTION double warp_sum(double value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// The sum over a thread block, in a fixed order. Every thread must call it; the first gets the result.
STN_FUNCTION double block_sum(double value) {
  __shared__ double warps[kWarps];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < kWarps; ++w) sum += warps[w];
  return sum;
}

}  // namespace stn
