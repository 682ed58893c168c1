// What objectives compare, section 7 of the equations: weights, fixed maps and moments, and how a tile leaves its
// sums for the kernels of `parameters.cu`.
#pragma once

#include "../shared/losses.h"
#include "channels.cuh"

namespace stn {

// Pairs of axes without order, an axis with itself included.
constexpr int kCurvatures = pairs_of(D);
constexpr int kMaxTerms = kMoments + kMaxRows * (D + 1) + pairs_of(kMaxRows) * pairs_of(D + 1);

// What a thread block adds up over the pixels of a tile, warp by warp.
using WarpSums = double[kWarps][kMaxTerms];

STN_FUNCTION T weight_of(const Descriptor& problem, int n, const Pixel& pixel, const T (&x)[D]) {
  bool counts = true;
#pragma unroll
  for (int a = 0; a < D; ++a) counts = counts & (x[a] >= T(0)) & (x[a] <= static_cast<T>(problem.source.size[a] - 1));
  if (static_cast<Domain>(problem.domain) == Domain::overlap && !counts) return T(0);
  if (problem.weights.data == nullptr) return T(1);
  return widened(fetched(maps_of(problem.weights, n) + offset_of<D>(problem.weights, 0, pixel)));
}

STN_FUNCTION const S* fixed_of(const Descriptor& problem, int n, const Pixel& pixel) {
  return maps_of(problem.fixed, n) + offset_of<D>(problem.fixed, 0, pixel);
}

// What padding makes of a point that is not finite.
STN_FUNCTION T fill_value(const Descriptor& problem, int channel) {
  T fill[1];
  fill_of(problem, channel, true, fill);
  return fill[0];
}

// Leaves the sum of each lane's number in `out`. Every lane must call it.
STN_FUNCTION void put_warp_sum(double value, bool is_first, double& out) {
  const double sum = warp_sum(value);
  if (threadIdx.x % kWarp == 0) out = is_first ? sum : out + sum;
}

// Leaves terms of a tile for the kernels that sum tiles. Every thread must call it.
STN_FUNCTION void put_terms(const Descriptor& problem, int64 tile, int first, int last, const WarpSums& warps) {
  __syncthreads();
#pragma unroll 1
  for (int e = first + threadIdx.x; e < last; e += kThreads) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += warps[w][e];
    in_device_memory(problem.sums)[tile * problem.terms + e] = sum;
  }
}

// The loss of one number, where it is a sum of such.
STN_FUNCTION double loss_of(const Descriptor& problem, double e) {
  return static_cast<Loss>(problem.loss) == Loss::ssd ? e * e : huber(e, problem.delta);
}

// The moments of one channel of a pixel, but for the weight.
STN_FUNCTION void add_moments(const Descriptor& problem, T w, T V, T F, double (&sums)[kMoments]) {
  const double weight = static_cast<double>(w);
  if (static_cast<Loss>(problem.loss) == Loss::ncc) {
    const double moving = static_cast<double>(V), fixed = static_cast<double>(F);
    const double of_moving = weight * moving, of_fixed = weight * fixed;
    sums[kMoving] += of_moving;
    sums[kFixed] += of_fixed;
    sums[kMovingMoving] = fused(of_moving, moving, sums[kMovingMoving]);
    sums[kFixedFixed] = fused(of_fixed, fixed, sums[kFixedFixed]);
    sums[kMovingFixed] = fused(of_moving, fixed, sums[kMovingFixed]);
  } else {
    sums[kLoss] = fused(weight, loss_of(problem, static_cast<double>(V - F)), sums[kLoss]);
  }
}

}  // namespace stn
