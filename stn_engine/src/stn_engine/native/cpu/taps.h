// The sampling plan of a block under any interpolation: K pixels along each axis, each padded on its own.
// Slower than cells and more general: nearest and bicubic reads, and gradients of maps by scatter.
#pragma once

#include "cells.h"
#include "read_cells.h"

namespace stn::STN_ISA {

template <class T, int D, int K>
struct TapPlan {
  int64_t offset[D][K][kBlock];  // along each axis, within the map
  T weight[D][K][kBlock];
  T slope[D][K][kBlock];  // derivatives of the weights by the coordinate
  Mask<T> inside[D][K][kBlock];
  Mask<T> live[kBlock];
  Mask<T> finite[kBlock];
  bool whole;  // every tap of every point is inside
};

// First tap and weights of a coordinate that padding has moved, if it moves coordinates at all. V is a number or
// lanes of them.
template <class V, int K>
struct AxisTaps {
  V first;
  V weight[K], slope[K];
};

template <int K, class V>
STN_FUNCTION AxisTaps<V, K> axis_taps(V x) {
  const V zero = V{}, one = V{} + 1;
  if constexpr (K == 1) {
    return {round_of(x), {one}, {zero}};
  } else if constexpr (K == 2) {
    const V first = floor_of(x), t = x - first;
    return {first, {one - t, t}, {-one, one}};
  } else {
    const V below = floor_of(x);
    const Keys<V> k = keys(x - below);
    return {below - one,
            {k.weight[0], k.weight[1], k.weight[2], k.weight[3]},
            {k.slope[0], k.slope[1], k.slope[2], k.slope[3]}};
  }
}

// Pixels beyond the outermost centres from which a coordinate still reads the map.
template <int K>
constexpr int kReach = K == 4 ? 2 : 1;

template <class T, int D, int K>
STN_FUNCTION void put_taps(const Problem& problem, int a, int b, T x, T slope, bool constant, TapPlan<T, D, K>& plan) {
  const T last = static_cast<T>(problem.source.size[a] - 1);
  const AxisTaps<T, K> taps = axis_taps<K>(x);
  if ((K == 2) & problem.sampling.zero_subgradient & (x == taps.first)) slope = T(0);
  for (int k = 0; k < K; ++k) {
    const T place = taps.first + static_cast<T>(k);
    const bool inside = (place >= T(0)) & (place <= last);
    plan.inside[a][k][b] = (inside | !constant) ? -1 : 0;
    plan.weight[a][k][b] = taps.weight[k];
    plan.slope[a][k][b] = taps.slope[k] * slope;
    plan.offset[a][k][b] = at_most(static_cast<int64_t>(clamp_to(place, T(0), last)), problem.source.size[a] - 1) *
                           problem.source.stride[a];
  }
}

// Places of bicubic taps under reflection: the coordinate stays, each tap is mirrored.
template <class T, int D>
STN_FUNCTION void mirror_taps(const Problem& problem, int a, int lanes, const T* x, TapPlan<T, D, 4>& plan) {
  const T last = static_cast<T>(problem.source.size[a] - 1);
  const Mirror<T> mirror = mirror_of(last, problem.sampling.unit == Unit::normalized);
  for (int k = 0; k < 4; ++k)
    for (int b = 0; b < lanes; ++b) {
      const T place = floor_of(x[b]) + static_cast<T>(k - 1);
      const T rest = std::fmod(std::abs(place - mirror.low), 2 * mirror.span);
      const T pixel = reflected(place, rest, mirror, last).x;
      plan.offset[a][k][b] =
          at_most(static_cast<int64_t>(pixel), problem.source.size[a] - 1) * problem.source.stride[a];
    }
}

template <class T, int D, int K>
STN_FUNCTION void plan_axis(const Problem& problem, int a, int lanes, T* x, TapPlan<T, D, K>& plan) {
  const bool constant = pads_by_constant(problem.sampling);
  const T last = static_cast<T>(problem.source.size[a] - 1), reach = T(kReach<K>);
  alignas(64) T slope[kBlock];
  for (int b = 0; b < lanes; ++b) slope[b] = T(1);
  if (constant) {
    for (int b = 0; b < lanes; ++b) {
      plan.live[b] &= ((x[b] >= -reach) & (x[b] <= last + reach)) ? -1 : 0;
      x[b] = clamp_to(x[b], -reach, last + reach);
    }
  } else if (K < 4) {
    pad_axis(problem.sampling, problem.source.size[a], lanes, x, slope);
  }
  for (int b = 0; b < lanes; ++b) put_taps<T, D, K>(problem, a, b, x[b], slope[b], constant, plan);
  if constexpr (K == 4)
    if (problem.sampling.padding == Padding::reflection) mirror_taps(problem, a, lanes, x, plan);
}

template <class T, int D, int K>
STN_LARGE_FUNCTION void plan_taps(const Problem& problem, int count, Points<T, D>& points, TapPlan<T, D, K>& plan) {
  const int lanes = whole_lanes(count);
  for (int b = 0; b < lanes; b += kLanes) store(keep_finite(points, b), plan.finite + b);
  for (int b = 0; b < lanes; ++b) plan.live[b] = plan.finite[b];
  for (int a = 0; a < D; ++a) plan_axis<T, D, K>(problem, a, lanes, points.at[a], plan);
  Mask<T> whole = -1;
  for (int b = 0; b < lanes; ++b) {
    whole &= plan.live[b];
    for (int a = 0; a < D; ++a)
      for (int k = 0; k < K; ++k) whole &= plan.inside[a][k][b];
  }
  plan.whole = whole != 0;
}

// The K^D taps of a point, x fastest.
template <int D, int K>
constexpr int kTaps = D == 2 ? K * K : K * K * K;

template <int K>
STN_FUNCTION int digit(int tap, int axis) {
  return axis == 0 ? tap % K : axis == 1 ? tap / K % K : tap / (K * K);
}

template <class T, int D, int K>
STN_FUNCTION int64_t tap_offset(const TapPlan<T, D, K>& plan, int tap, int b) {
  int64_t offset = 0;
  for (int a = 0; a < D; ++a) offset += plan.offset[a][digit<K>(tap, a)][b];
  return offset;
}

template <class T, int D, int K>
STN_FUNCTION bool tap_inside(const TapPlan<T, D, K>& plan, int tap, int b) {
  Mask<T> inside = plan.live[b];
  for (int a = 0; a < D; ++a) inside &= plan.inside[a][digit<K>(tap, a)][b];
  return inside != 0;
}

template <class T, int D, int K>
STN_FUNCTION T tap_weight(const TapPlan<T, D, K>& plan, int tap, int b) {
  T weight = plan.weight[0][digit<K>(tap, 0)][b];
  for (int a = 1; a < D; ++a) weight *= plan.weight[a][digit<K>(tap, a)][b];
  return weight;
}

template <class S, class T, int D, int K>
STN_FUNCTION T tap_value(const S* channel, const TapPlan<T, D, K>& plan, int tap, int b, T outside) {
  if (plan.whole || tap_inside(plan, tap, b)) return widened(channel[tap_offset(plan, tap, b)]);
  return outside;
}

// The sum over taps of value·weight, x innermost; axis `by`, if any, contributes slopes in place of weights.
template <class S, class T, int D, int K>
STN_LARGE_FUNCTION T sum_taps(const S* channel, const TapPlan<T, D, K>& plan, int b, T outside, int by, T origin) {
  const auto factor = [&](int axis, int k) { return axis == by ? plan.slope[axis][k][b] : plan.weight[axis][k][b]; };
  T volume = T(0);
#pragma GCC unroll 1
  for (int z = 0; z < (D == 3 ? K : 1); ++z) {
    T plane = T(0);
#pragma GCC unroll 1
    for (int y = 0; y < K; ++y) {
      T row = T(0);
      for (int x = 0; x < K; ++x)
        row += (tap_value<S, T, D, K>(channel, plan, (z * K + y) * K + x, b, outside) - origin) * factor(0, x);
      plane += row * factor(1, y);
    }
    if constexpr (D == 3) volume += plane * factor(2, z);
    else volume = plane;
  }
  return volume;
}

// V of one channel at the points of a block.
template <class S, class T, int D, int K>
STN_FUNCTION void read_taps(const S* channel, const TapPlan<T, D, K>& plan, int count, const Constants<T>& constants,
                            T* out) {
  for (int b = 0; b < count; ++b) out[b] = sum_taps<S, T, D, K>(channel, plan, b, constants.outside, -1, T(0));
  for (int b = 0; b < count; ++b)
    if (!plan.live[b]) out[b] = plan.finite[b] ? constants.outside : constants.fill;
}

// Adds G times the derivative by each coordinate. Values count from the first tap, so that a large common
// offset of the pixels cancels.
template <class S, class T, int D, int K>
STN_FUNCTION void add_tap_gradient(const S* channel, const TapPlan<T, D, K>& plan, int count, T outside, const T* grad,
                                   ByCoordinate<T, D>& out) {
  for (int b = 0; b < count; ++b) {
    if (!plan.live[b]) continue;
    const T origin = tap_value<S, T, D, K>(channel, plan, 0, b, outside);
    for (int a = 0; a < D; ++a)
      if (plan.slope[a][0][b] != T(0) || K == 4)
        out.at[a][b] += grad[b] * sum_taps<S, T, D, K>(channel, plan, b, outside, a, origin);
  }
}

}  // namespace stn::STN_ISA
