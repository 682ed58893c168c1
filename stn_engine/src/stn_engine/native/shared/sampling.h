// One axis of a sample: what padding does to a coordinate, and which pixels it reads with what weights
// (sections 1 and 5).
//
// T is a number. V is the same, or a vector of such numbers: comparisons of vectors give masks, and choose()
// picks lane by lane. Nothing here branches on a V.
#pragma once

#include "common.h"

namespace stn {

// What a comparison of two V gives.
template <class V>
using MaskOf = decltype(V{} == V{});

template <class V>
STN_FUNCTION V choose(bool condition, V a, V b) {
  return condition ? a : b;
}

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
STN_FUNCTION float floor_of(float x) { return ::floorf(x); }
STN_FUNCTION double floor_of(double x) { return ::floor(x); }
STN_FUNCTION float round_of(float x) { return ::rintf(x); }
STN_FUNCTION double round_of(double x) { return ::rint(x); }
#else
STN_FUNCTION float floor_of(float x) { return std::floor(x); }
STN_FUNCTION double floor_of(double x) { return std::floor(x); }
STN_FUNCTION float round_of(float x) { return std::nearbyint(x); }
STN_FUNCTION double round_of(double x) { return std::nearbyint(x); }
#endif

template <class V, class T>
STN_FUNCTION V at_least(V x, T low) {
  const V bound = V{} + low;
  return choose(x < bound, bound, x);
}

template <class V, class T>
STN_FUNCTION V at_most(V x, T high) {
  const V bound = V{} + high;
  return choose(x > bound, bound, x);
}

template <class V, class T>
STN_FUNCTION V clamp_to(V x, T low, T high) {
  return at_most(at_least(x, low), high);
}

// x - x is 0 for finite numbers alone.
template <class V>
STN_FUNCTION MaskOf<V> is_finite(V x) {
  return x - x == V{};
}

// A coordinate as padding moves it, and the derivative of that: 1, -1 or 0.
template <class V>
struct Padded {
  V x, slope;
};

// Clipped to the outermost centres; the border itself counts as outside.
template <class V, class T>
STN_FUNCTION Padded<V> clipped(V x, V slope, T last) {
  const MaskOf<V> moving = (x > V{}) & (x < V{} + last);
  return {clamp_to(x, T(0), last), choose(moving, slope, V{})};
}

// Where a reflection mirrors: about pixel edges, or about the outermost centres.
template <class T>
struct Mirror {
  T low, span;
};

template <class T>
STN_FUNCTION Mirror<T> mirror_of(T last, bool about_edges) {
  if (about_edges) return {T(-0.5), last + T(1)};
  return {T(0), at_least(last, T(1))};
}

// Up to here multiples of a mirror's period are exact in float32, and fit an int.
constexpr float kExactPeriods = 4194304.0f;

// q modulo the period, exact for 0 <= q <= kExactPeriods.
template <class V, class T>
STN_FUNCTION V near_remainder(V q, T period) {
  V rest = q - period * floor_of(q / period);
  rest = choose(rest < V{}, rest + period, rest);
  return choose(rest >= V{} + period, rest - period, rest);
}

// x from its distance to the mirror's low end, modulo the period.
template <class V, class T>
STN_FUNCTION Padded<V> reflected(V x, V remainder, Mirror<T> mirror, T last) {
  const V one = V{} + T(1);
  const MaskOf<V> returning = remainder >= V{} + mirror.span, before = x < V{} + mirror.low;
  const V folded = choose(returning, T(2) * mirror.span - remainder, remainder) + mirror.low;
  return clipped(folded, choose(returning != before, -one, one), last);
}

// Keys' cubic convolution, a = -0.75, at distances 1 + t, t, 1 - t and 2 - t, and its derivatives by t.
template <class V>
struct Keys {
  V weight[4], slope[4];
};

template <class V>
STN_FUNCTION Keys<V> keys(V t) {
  const V one = V{} + 1, a = one * -3 / 4, s = one - t;
  return {{a * t * s * s, ((a + 2) * t - (a + 3)) * t * t + 1, ((a + 2) * s - (a + 3)) * s * s + 1, a * s * t * t},
          {a * s * (1 - 3 * t), t * (3 * (a + 2) * t - 2 * (a + 3)), s * (2 * (a + 3) - 3 * (a + 2) * s),
           a * t * (2 - 3 * t)}};
}

// The cell of equation (1) as two neighbouring pixels that both exist, wherever the coordinate is.
//
// Where only one of the true neighbours exists, it keeps its weight in the slot it falls into and the other
// slot stands for the pixel outside: in0 and in1 say which slots are true. The derivative by the coordinate
// is slope·(slot1 - slot0).
template <class V>
struct Cell {
  V first, weight0, weight1, slope;
  MaskOf<V> in0, in1;
};

// The last pixel that may come first in a cell.
template <class T>
STN_FUNCTION T last_first(int size) {
  return static_cast<T>(size > 1 ? size - 2 : 0);
}

// Padding by a constant: x is not moved.
template <class T, class V>
STN_FUNCTION Cell<V> constant_cell(V x, int size) {
  const V one = V{} + T(1), below = floor_of(x), t = x - below;
  const V first = clamp_to(below, T(0), last_first<T>(size)), shift = below - first;
  const MaskOf<V> straight = shift == V{}, before = shift == -one, behind = shift == one;
  const MaskOf<V> none = one == V{}, off = before | behind;
  const V slope = choose(straight, one, choose(off, -one, V{}));
  const MaskOf<V> in0 = straight | before, in1 = size > 1 ? MaskOf<V>(straight | behind) : none;
  return {first, choose(straight, one - t, t), choose(straight, t, one - t), slope, in0, in1};
}

// Padding that moves x into the map beforehand.
template <class T, class V>
STN_FUNCTION Cell<V> inner_cell(Padded<V> at, int size) {
  const V one = V{} + T(1), first = at_most(floor_of(at.x), last_first<T>(size)), t = at.x - first;
  const MaskOf<V> moving = at.slope != V{}, none = one == V{};
  const MaskOf<V> in0 = (t != one) | moving, in1 = size > 1 ? MaskOf<V>((t != V{}) | moving) : none;
  return {first, one - t, t, at.slope, in0, in1};
}

}  // namespace stn
