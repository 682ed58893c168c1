// Which target pixels can read a source pixel, in closed form. Never too few; a few too many.
//
// A target pixel reads source coordinate x_a = X_a/W, where X_a and W are linear in the pixel and W is 1 for an
// affine map. "x_a lies above a bound" is the half-plane X_a - bound·W > 0 where W > 0, and its opposite behind
// the horizon: rows of the target are cut by half-planes, whatever the matrix. Where it can be inverted, the rows
// themselves are bounded, too.
#pragma once

#include "points.cuh"

namespace stn {

constexpr double kFar = 1e300;    // farther than any pixel
constexpr double kMargin = 1e-3;  // in pixels, beside what rounding may move a point
constexpr double kReach = K == 4 ? 2.0 : K == 2 ? 1.0 : 0.5;

// Candidates that one thread walks.
constexpr int kFew = D == 2 ? 64 : 128;

struct Reach {
  double row[3][4];      // X, Y and Z or W
  double slack[3];       // what rounding may add to X_a - bound·W
  double divisor_slack;  // and to W
  double inverse[3][4];  // target = inverse·(source, 1), up to the divisor
  double half[3];        // of the box around a source pixel whose preimage is sought
  double extent[3];      // of that preimage; affine maps
  double sign;           // of W all over the target; 0 if it changes
  int projective, finite, invertible;
  int always_few;  // whether no pixel has more than kFew candidates
};

STN_FUNCTION double row_magnitude(const Item& item, const double (&row)[4]) {
  double sum = magnitude(row[D]);
  for (int b = 0; b < D; ++b) sum += magnitude(row[b]) * item.to.size[b];
  return sum;
}

STN_FUNCTION void load_rows(const Item& item, int n, Reach& reach) {
  reach.projective = static_cast<Kind>(item.kind) == Kind::homography;
  reach.finite = true;
  for (int e = 0; e < item.entries; ++e) {
    const double entry = entry_of(item, n, e);
    reach.row[e / (D + 1)][e % (D + 1)] = entry;
    reach.finite &= is_finite(static_cast<T>(entry));
  }
}

// The sign of W, and how far from 0 it stays.
STN_FUNCTION double smallest_divisor(const Item& item, Reach& reach) {
  reach.sign = 1.0;
  if (!reach.projective) return 1.0;
  double low = kFar, high = -kFar;
  for (int corner = 0; corner < 4; ++corner) {
    const double w = reach.row[2][0] * (corner & 1 ? item.to.size[0] - 1 : 0) +
                     reach.row[2][1] * (corner & 2 ? item.to.size[1] - 1 : 0) + reach.row[2][2];
    low = smaller(low, w);
    high = larger(high, w);
  }
  reach.sign = low > 0.0 ? 1.0 : high < 0.0 ? -1.0 : 0.0;
  return low > 0.0 ? low : -high;
}

// By cofactors; the result has scale 1/W.
STN_FUNCTION double invert(const double (&m)[3][3], double (&inverse)[3][4]) {
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

STN_FUNCTION void invert(const Item& item, Reach& reach) {
  double m[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, scale = 1.0;
  const int size = reach.projective ? 3 : D;
  for (int r = 0; r < size; ++r) {
    for (int c = 0; c < size; ++c) m[r][c] = reach.row[r][c];
    scale *= row_magnitude(item, reach.row[r]);
  }
  const double determinant = invert(m, reach.inverse);
  reach.invertible =
      is_finite(determinant) && magnitude(determinant) > 1e-9 * scale / (item.to.size[0] + item.to.size[1]);
  for (int a = 0; a < D && !reach.projective; ++a) {
    reach.inverse[a][D] = 0.0;
    for (int b = 0; b < D; ++b) reach.inverse[a][D] -= reach.inverse[a][b] * reach.row[b][D];
  }
}

STN_FUNCTION void find_reach(const Item& item, int n, Reach& reach) {
  load_rows(item, n, reach);
  reach.always_few = !reach.finite;
  if (!reach.finite) return;
  const double epsilon = sizeof(T) == 8 ? 2.3e-16 : 1.2e-7, divisor = smallest_divisor(item, reach);
  const double divisor_error = reach.projective ? row_magnitude(item, reach.row[2]) : 0.0;
  reach.divisor_slack = 8.0 * epsilon * divisor_error;
  for (int a = 0; a < D; ++a) {
    const double farthest = item.from.size[a] + 4.0;
    reach.slack[a] = 8.0 * epsilon * (row_magnitude(item, reach.row[a]) + farthest * divisor_error);
    reach.half[a] = kReach + kMargin + (reach.sign != 0.0 ? reach.slack[a] / divisor : 0.0);
  }
  invert(item, reach);
  reach.invertible = reach.invertible && reach.sign != 0.0;
  double candidates = 1.0;
  for (int a = 0; a < D; ++a) {
    reach.extent[a] = 0.0;
    for (int b = 0; b < D; ++b) reach.extent[a] += magnitude(reach.inverse[a][b]) * reach.half[b];
    candidates *= 2.0 * reach.extent[a] + 1.0;
  }
  const bool clips = static_cast<Padding>(item.padding) == Padding::border;
  reach.always_few = reach.invertible && !reach.projective && !clips && candidates <= kFew;
}

// Source coordinates from which a pixel is read; unlimited where padding clips them to it.
struct Box {
  double low[D], high[D];
  bool bounded;
};

STN_FUNCTION Box box_of(const Item& item, const Pixel& pixel) {
  Box box;
  box.bounded = true;
  for (int a = 0; a < D; ++a) {
    const bool clips = static_cast<Padding>(item.padding) == Padding::border;
    const bool first = clips && pixel.at[a] == 0, last = clips && pixel.at[a] == item.from.size[a] - 1;
    box.low[a] = first ? -kFar : pixel.at[a] - (kReach + kMargin);
    box.high[a] = last ? kFar : pixel.at[a] + (kReach + kMargin);
    box.bounded = box.bounded && !first && !last;
  }
  return box;
}

// Target pixels first <= j < last.
struct Range {
  int first, last;

  STN_MEMBER int size() const { return last > first ? last - first : 0; }
};

// The integers of [low, high] in a map of some size.
STN_FUNCTION Range range_of(double low, double high, int size) {
  const int first = low <= 0.0 ? 0 : low >= size ? size : static_cast<int>(::ceil(low));
  const int last = high < 0.0 ? 0 : high >= size - 1 ? size : static_cast<int>(::floor(high)) + 1;
  return {first, last};
}

// A box of target pixels; all of them if nothing better is known.
struct Window {
  Range axis[kMaxAxes];

  STN_MEMBER explicit Window(const Item& item) {
    for (int a = 0; a < kMaxAxes; ++a) axis[a] = {0, item.to.size[a]};
  }

  STN_MEMBER int rows() const { return axis[1].size() * axis[2].size(); }
  STN_MEMBER int64 pixels() const { return static_cast<int64>(rows()) * axis[0].size(); }
};

STN_FUNCTION void pull_back_affine(const Item& item, const Reach& reach, const Pixel& pixel, Window& window) {
  for (int a = 0; a < D; ++a) {
    double centre = reach.inverse[a][D];
    for (int b = 0; b < D; ++b) centre = fused(reach.inverse[a][b], static_cast<double>(pixel.at[b]), centre);
    window.axis[a] = range_of(centre - reach.extent[a], centre + reach.extent[a], item.to.size[a]);
  }
}

// By the corners of the box, as long as none of them lies behind the horizon.
STN_FUNCTION void pull_back_projective(const Item& item, const Reach& reach, const Pixel& pixel, Window& window) {
  double low[2] = {kFar, kFar}, high[2] = {-kFar, -kFar};
#pragma unroll 1
  for (int corner = 0; corner < 4; ++corner) {
    const double x = pixel.at[0] + (corner & 1 ? reach.half[0] : -reach.half[0]);
    const double y = pixel.at[1] + (corner & 2 ? reach.half[1] : -reach.half[1]);
    const double w = reach.inverse[2][0] * x + reach.inverse[2][1] * y + reach.inverse[2][2];
    if (!(w * reach.sign > 0.0)) return;
    for (int a = 0; a < 2; ++a) {
      const double at = (reach.inverse[a][0] * x + reach.inverse[a][1] * y + reach.inverse[a][2]) / w;
      if (!is_finite(at)) return;
      low[a] = smaller(low[a], at);
      high[a] = larger(high[a], at);
    }
  }
  for (int a = 0; a < 2; ++a) window.axis[a] = range_of(low[a] - kMargin, high[a] + kMargin, item.to.size[a]);
}

STN_FUNCTION Window window_of(const Item& item, const Reach& reach, const Pixel& pixel) {
  Window window(item);
  if (!reach.finite) window.axis[0] = {0, 0};
  else if (!reach.invertible || !box_of(item, pixel).bounded) return window;
  else if (reach.projective) pull_back_projective(item, reach, pixel, window);
  else pull_back_affine(item, reach, pixel, window);
  return window;
}

// Columns of the target row (i, k) whose points lie in the box, where W has the sign `side`.
STN_FUNCTION Range columns_of(const Item& item, const Reach& reach, const Box& box, int i, int k, double side) {
  double low = -1.0, high = static_cast<double>(item.to.size[0]);
  const auto cut = [&](const double(&row)[4], double bound, double sign, double slack) {
    const bool divides = reach.projective != 0;
    const double w[4] = {divides ? reach.row[2][0] : 0.0, divides ? reach.row[2][1] : 0.0,
                         divides ? reach.row[2][2] : 1.0, 0.0};
    const double by_j = sign * (row[0] - bound * w[0]), by_i = sign * (row[1] - bound * w[1]);
    double constant = sign * (row[D] - bound * (D == 2 ? w[2] : 1.0)) + by_i * i + slack;
    if (D == 3) constant += sign * row[2] * k;
    if (by_j > 0.0) low = larger(low, -constant / by_j);
    else if (by_j < 0.0) high = smaller(high, -constant / by_j);
    else if (constant < 0.0) high = -1.0;
  };
  for (int a = 0; a < D; ++a) {
    if (box.low[a] > -kFar) cut(reach.row[a], box.low[a], side, reach.slack[a]);
    if (box.high[a] < kFar) cut(reach.row[a], box.high[a], -side, reach.slack[a]);
  }
  if (D == 2 && reach.projective) cut(reach.row[2], 0.0, side, reach.divisor_slack);
  return range_of(low, high, item.to.size[0]);
}

}  // namespace stn
