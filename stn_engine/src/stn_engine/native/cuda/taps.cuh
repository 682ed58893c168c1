// The sampling plan of a point: K pixels along each axis, with weights and their derivatives.
#pragma once

#include "points.cuh"

namespace stn {

struct AxisTaps {
  int pixel[K];
  bool inside[K];
  T weight[K];
  T slope[K];  // derivative of the weight by the coordinate
};

STN_FUNCTION bool pads_by(const Descriptor& problem, Padding padding) {
  return static_cast<Padding>(problem.padding) == padding;
}

// Programs that never see reflection say so, and are spared its registers.
#ifndef STN_MIRRORS
#define STN_MIRRORS true
#endif

STN_FUNCTION bool mirrors(const Descriptor& problem) { return STN_MIRRORS && pads_by(problem, Padding::reflection); }

// A coordinate mirrored into the map, exactly, whatever its magnitude.
STN_FUNCTION Padded<T> mirrored(T x, const Descriptor& problem, int a) {
  const T last = static_cast<T>(problem.source.size[a] - 1);
  const Mirror<T> mirror = mirror_of(last, static_cast<Unit>(problem.unit) == Unit::normalized);
  const T period = 2 * mirror.span, distance = magnitude(x - mirror.low);
  const bool near = distance <= static_cast<T>(kExactPeriods) - period;
  return reflected(x, near ? near_remainder(distance, period) : remainder_of(distance, period), mirror, last);
}

// What padding makes of a coordinate unless it mirrors. Bicubic pads its taps instead.
STN_FUNCTION Padded<T> unmirrored(T x, const Descriptor& problem, int a) {
  const int size = problem.source.size[a];
  if (K < 4 && pads_by(problem, Padding::border)) return clipped(x, T(1), static_cast<T>(size - 1));
  return {clamp_to(x, T(-4), static_cast<T>(size + 3)), T(1)};  // reads nothing there, and fits an int
}

STN_FUNCTION Padded<T> padded(T x, const Descriptor& problem, int a) {
  if (K < 4 && mirrors(problem)) return mirrored(x, problem, a);
  if (K == 4 && mirrors(problem)) return {x, T(1)};
  return unmirrored(x, problem, a);
}

// The pixel that weights of a coordinate count from: the nearest one, or the last one before it.
STN_FUNCTION T anchor_of(T x) { return K == 1 ? round_of(x) : floor_of(x); }

// Weights of a coordinate that padding has moved.
STN_FUNCTION void weigh(Padded<T> at, T anchor, bool zero_subgradient, AxisTaps& taps) {
  if constexpr (K == 1) {
    taps.weight[0] = T(1);
    taps.slope[0] = T(0);
  } else if constexpr (K == 2) {
    const T t = at.x - anchor;
    const T slope = zero_subgradient & (t == T(0)) ? T(0) : at.slope;
    taps.weight[0] = T(1) - t;
    taps.weight[1] = t;
    taps.slope[0] = -slope;
    taps.slope[1] = slope;
  } else {
    const Keys<T> cubic = keys(at.x - anchor);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      taps.weight[k] = cubic.weight[k];
      taps.slope[k] = cubic.slope[k];
    }
  }
}

STN_FUNCTION AxisTaps axis_taps(T x, const Descriptor& problem, int a) {
  const int size = problem.source.size[a];
  AxisTaps taps;
  const Padded<T> at = padded(x, problem, a);
  const T anchor = anchor_of(at.x), first = K == 4 ? anchor - T(1) : anchor;
  weigh(at, anchor, problem.zero_subgradient != 0, taps);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    T place = first + static_cast<T>(k);
    if (K == 4 && mirrors(problem)) place = mirrored(place, problem, a).x;
    const int pixel = static_cast<int>(place);
    taps.pixel[k] = K == 4 && pads_by(problem, Padding::border) ? larger(0, smaller(pixel, size - 1)) : pixel;
    taps.inside[k] = static_cast<unsigned>(taps.pixel[k]) < static_cast<unsigned>(size);
  }
  return taps;
}

// Places of the taps within a channel of a map; the host makes sure that they fit an int.
struct TapPlan {
  int offset[D][K];
  T weight[D][K];
  unsigned there;  // a bit per tap of every axis

  STN_MEMBER void take(const Map& map, int a, const AxisTaps& taps) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      offset[a][k] = taps.pixel[k] * map.stride[a];
      weight[a][k] = taps.weight[k];
      there |= static_cast<unsigned>(taps.inside[k]) << (a * K + k);
    }
  }

  STN_MEMBER TapPlan(const Descriptor& problem, const Map& map, const T (&x)[D]) : there(0) {
#pragma unroll
    for (int a = 0; a < D; ++a) take(map, a, axis_taps(x[a], problem, a));
  }

  STN_MEMBER TapPlan() : there(0) {}

  // Whether every tap lies within the map.
  STN_MEMBER bool whole() const { return there == (1u << (D * K)) - 1u; }

  STN_MEMBER bool inside(int x, int y, int z) const {
    const unsigned bits = 1u << x | 1u << (K + y) | (D == 3 ? 1u << (2 * K + z) : 0u);
    return (there & bits) == bits;
  }

  STN_MEMBER int place(int x, int y, int z) const {
    return offset[0][x] + offset[1][y] + (D == 3 ? offset[D - 1][z] : 0);
  }

  STN_MEMBER T product(int x, int y, int z) const {
    const T flat = weight[0][x] * weight[1][y];
    return D == 3 ? flat * weight[D - 1][z] : flat;
  }
};

// A plan that also has the derivatives of its weights.
struct SlopeTapPlan : TapPlan {
  T slope[D][K];

  STN_MEMBER SlopeTapPlan(const Descriptor& problem, const T (&x)[D]) {
#pragma unroll
    for (int a = 0; a < D; ++a) {
      const AxisTaps taps = axis_taps(x[a], problem, a);
      take(problem.feature_map, a, taps);
#pragma unroll
      for (int k = 0; k < K; ++k) slope[a][k] = taps.slope[k];
    }
  }
};

// Calls f(x, y, z) for every tap, x fastest.
template <class F>
STN_FUNCTION void for_taps(F f) {
#pragma unroll
  for (int z = 0; z < (D == 3 ? K : 1); ++z)
#pragma unroll
    for (int y = 0; y < K; ++y)
#pragma unroll
      for (int x = 0; x < K; ++x) f(x, y, z);
}

}  // namespace stn
