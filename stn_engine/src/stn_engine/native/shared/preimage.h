// Which target pixels may read some source pixels, in closed form: never too few, a few too many.
//
// A target pixel reads source coordinate x_a = X_a/W, where X_a and W are linear in the pixel and W is 1 for an affine
// map. "x_a lies above a bound" is the half-plane X_a - bound·W >= 0 where W > 0, and its opposite behind the horizon:
// rows of the target are cut by half-planes, whatever the matrix. Where it can be inverted, the rows themselves are
// bounded, too.
#pragma once

#include "sampling.h"
#include "transforms.h"

namespace stn {

constexpr double kFar = 1e300;    // farther than any pixel: in place of a bound where there is none
constexpr double kMargin = 1e-3;  // in pixels, beside what rounding may move a point

// A matrix over the lattice of a target: what of it can be inverted, and how far rounding may move its points.
template <int Axes>
struct Preimage {
  double row[kMaxRows][kMaxAxes + 1];      // X, Y and Z, or W of a homography, by (j, i[, k], 1)
  double inverse[kMaxRows][kMaxAxes + 1];  // target = inverse·(source, 1), up to the divisor
  double slack[kMaxAxes];                  // what rounding may add to X_a - bound·W
  double divisor_slack;                    // and to W
  double margin[kMaxAxes];                 // what rounding may move x_a where W keeps its sign, and kMargin
  double sign;                             // of W all over the target; 0 if it changes
  int projective, invertible;
};

// Source coordinates low <= x <= high along each axis.
template <int Axes>
struct Box {
  double low[Axes], high[Axes];

  STN_MEMBER bool is_bounded() const {
    bool bounded = true;
    for (int a = 0; a < Axes; ++a) bounded = bounded && low[a] > -kFar && high[a] < kFar;
    return bounded;
  }
};

// The sum of the terms of a row over the target without their signs: what its rounding errors scale with.
template <int Axes, class Size>
STN_FUNCTION double row_magnitude(const double (&row)[kMaxAxes + 1], const Size* target) {
  double sum = magnitude(row[Axes]);
  for (int b = 0; b < Axes; ++b) sum += magnitude(row[b]) * static_cast<double>(target[b]);
  return sum;
}

// Finds the sign of W, and says how far from 0 it stays.
template <int Axes, class Size>
STN_FUNCTION double find_sign(Preimage<Axes>& preimage, const Size* target) {
  preimage.sign = 1.0;
  if (!preimage.projective) return 1.0;
  double low = kFar, high = -kFar;
  for (int corner = 0; corner < 4; ++corner) {
    const double w = preimage.row[2][0] * static_cast<double>(corner & 1 ? target[0] - 1 : 0) +
                     preimage.row[2][1] * static_cast<double>(corner & 2 ? target[1] - 1 : 0) + preimage.row[2][2];
    low = smaller(low, w);
    high = larger(high, w);
  }
  preimage.sign = low > 0.0 ? 1.0 : high < 0.0 ? -1.0 : 0.0;
  return low > 0.0 ? low : -high;
}

// Finds all but the inverse. `epsilon` is that of the precision in which points are computed.
template <int Axes, class Size>
STN_FUNCTION void find_margins(Preimage<Axes>& preimage, const Size* target, const Size* source, double epsilon) {
  const double divisor = find_sign(preimage, target);
  const double divisor_error = preimage.projective ? row_magnitude<Axes>(preimage.row[2], target) : 0.0;
  preimage.divisor_slack = 8.0 * epsilon * divisor_error;
  for (int a = 0; a < Axes; ++a) {
    const double farthest = static_cast<double>(source[a]) + 4.0;
    preimage.slack[a] = 8.0 * epsilon * (row_magnitude<Axes>(preimage.row[a], target) + farthest * divisor_error);
    preimage.margin[a] = kMargin + (preimage.sign != 0.0 ? preimage.slack[a] / divisor : 0.0);
  }
}

// By cofactors: that of a projective map has a scale of its own, which its divisor takes out.
STN_FUNCTION double invert_three(const double (&m)[kMaxRows][kMaxAxes + 1], double (&inverse)[kMaxRows][kMaxAxes + 1]) {
  double cofactor[3][3];
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) {
      const int r1 = (r + 1) % 3, r2 = (r + 2) % 3, c1 = (c + 1) % 3, c2 = (c + 2) % 3;
      cofactor[r][c] = m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1];
    }
  const double determinant = m[0][0] * cofactor[0][0] + m[0][1] * cofactor[0][1] + m[0][2] * cofactor[0][2];
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) inverse[c][r] = cofactor[r][c] / determinant;
  return determinant;
}

STN_FUNCTION double invert_two(const double (&m)[kMaxRows][kMaxAxes + 1], double (&inverse)[kMaxRows][kMaxAxes + 1]) {
  const double determinant = m[0][0] * m[1][1] - m[0][1] * m[1][0];
  inverse[0][0] = m[1][1] / determinant;
  inverse[0][1] = -m[0][1] / determinant;
  inverse[1][0] = -m[1][0] / determinant;
  inverse[1][1] = m[0][0] / determinant;
  return determinant;
}

// Finds the inverse, if W keeps its sign and the determinant is more than rounding could make of 0.
template <int Axes, class Size>
STN_FUNCTION void invert(Preimage<Axes>& preimage, const Size* target) {
  const int rows = preimage.projective ? 3 : Axes;
  const double determinant =
      rows == 3 ? invert_three(preimage.row, preimage.inverse) : invert_two(preimage.row, preimage.inverse);
  double scale = 1.0;
  for (int r = 0; r < rows; ++r) scale *= row_magnitude<Axes>(preimage.row[r], target);
  preimage.invertible = preimage.sign != 0.0 && is_finite(determinant) &&
                        magnitude(determinant) > 1e-9 * scale / static_cast<double>(target[0] + target[1]);
  for (int a = 0; a < Axes && !preimage.projective; ++a) {
    preimage.inverse[a][Axes] = 0.0;
    for (int b = 0; b < Axes; ++b) preimage.inverse[a][Axes] -= preimage.inverse[a][b] * preimage.row[b][Axes];
  }
}

// The integers of [low, high] among 0 <= j < size.
template <class Index>
STN_FUNCTION IndexRange<Index> range_of(double low, double high, Index size) {
  const Index first = low <= 0.0 ? 0 : low >= static_cast<double>(size) ? size : static_cast<Index>(::ceil(low));
  const Index last = high < 0.0                              ? 0
                     : high >= static_cast<double>(size - 1) ? size
                                                             : static_cast<Index>(::floor(high)) + 1;
  return {first, last};
}

// How far along axis a the preimage of a box reaches from its centre, under an affine map.
template <int Axes>
STN_FUNCTION double preimage_extent(const Preimage<Axes>& preimage, const double (&half)[kMaxAxes], int a) {
  double extent = 0.0;
  for (int b = 0; b < Axes; ++b) extent += magnitude(preimage.inverse[a][b]) * half[b];
  return extent;
}

// Target pixels along axis a whose points may lie around a centre, under an affine map.
template <int Axes, class Centre, class Index>
STN_FUNCTION IndexRange<Index> pull_back_affine(const Preimage<Axes>& preimage, const Centre* centre, double extent,
                                                int a, Index size) {
  double at = preimage.inverse[a][Axes];
  for (int b = 0; b < Axes; ++b) at += preimage.inverse[a][b] * static_cast<double>(centre[b]);
  return range_of(at - extent, at + extent, size);
}

// The same of a box under a homography, by its corners; false as long as one of them lies behind the horizon, where it
// says nothing.
template <int Axes, class Centre, class Index>
STN_FUNCTION bool pull_back_projective(const Preimage<Axes>& preimage, const Centre* centre, const double* half,
                                       const Index* target, IndexRange<Index>* window) {
  double low[2] = {kFar, kFar}, high[2] = {-kFar, -kFar};
  STN_ROLLED
  for (int corner = 0; corner < 4; ++corner) {
    const double x = static_cast<double>(centre[0]) + (corner & 1 ? half[0] : -half[0]);
    const double y = static_cast<double>(centre[1]) + (corner & 2 ? half[1] : -half[1]);
    const double w = preimage.inverse[2][0] * x + preimage.inverse[2][1] * y + preimage.inverse[2][2];
    if (!(w * preimage.sign > 0.0)) return false;
    for (int a = 0; a < 2; ++a) {
      const double at = (preimage.inverse[a][0] * x + preimage.inverse[a][1] * y + preimage.inverse[a][2]) / w;
      if (!is_finite(at)) return false;
      low[a] = smaller(low[a], at);
      high[a] = larger(high[a], at);
    }
  }
  for (int a = 0; a < 2; ++a) window[a] = range_of(low[a] - kMargin, high[a] + kMargin, target[a]);
  return true;
}

// step·j + by_i·i + by_k·k + constant >= 0; `scale` is -1/step.
struct HalfPlane {
  double step, by_i, by_k, constant, scale;
};

// side·(X - bound·W) >= 0 for the X of a row, but for rounding. `side` is the sign of W, or, to stay below the bound,
// its opposite.
template <int Axes>
STN_FUNCTION HalfPlane half_plane(const Preimage<Axes>& preimage, const double (&row)[kMaxAxes + 1], double bound,
                                  double side, double slack) {
  const bool divides = preimage.projective != 0;
  const double step = side * (row[0] - bound * (divides ? preimage.row[2][0] : 0.0));
  const double by_i = side * (row[1] - bound * (divides ? preimage.row[2][1] : 0.0));
  const double constant = side * (row[Axes] - bound * (divides ? preimage.row[2][2] : 1.0)) + slack;
  return {step, by_i, Axes == 3 ? side * row[2] : 0.0, constant, -1.0 / step};
}

// Runs visit(half_plane) over those that bound the pixels whose points may lie in a box where W has a sign. `slack` is
// what rounding may add along each axis, unless the box has room for it.
template <int Axes, class Visit>
STN_FUNCTION void for_half_planes(const Preimage<Axes>& preimage, const Box<Axes>& box, double sign,
                                  const double (&slack)[kMaxAxes], Visit visit) {
  for (int a = 0; a < Axes; ++a) {
    if (box.low[a] > -kFar) visit(half_plane(preimage, preimage.row[a], box.low[a], sign, slack[a]));
    if (box.high[a] < kFar) visit(half_plane(preimage, preimage.row[a], box.high[a], -sign, slack[a]));
  }
}

// Columns low <= j <= high of the target row (i, k), cut by one half-plane after the other.
template <int Axes>
struct Columns {
  double low, high;

  template <class Index>
  STN_MEMBER void cut(const HalfPlane& by, Index i, Index k) {
    double constant = by.constant + by.by_i * static_cast<double>(i);
    if (Axes == 3) constant += by.by_k * static_cast<double>(k);
    if (by.step > 0.0) low = larger(low, constant * by.scale);
    else if (by.step < 0.0) high = smaller(high, constant * by.scale);
    else if (constant < 0.0) high = -1.0;
  }
};

}  // namespace stn
