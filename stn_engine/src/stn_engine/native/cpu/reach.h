// Which target pixels can read a box of source pixels, in closed form. Never too few; a few too many.
#pragma once

#include "points.h"

namespace stn::STN_ISA {

// Source coordinates low <= x < high along each axis; may be infinite.
struct Box {
  double low[kMaxAxes], high[kMaxAxes];
};

STN_FUNCTION int64_t to_index(double value, int64_t size) {
  return value <= 0.0 ? 0 : value >= static_cast<double>(size) ? size : static_cast<int64_t>(value);
}

// A linear (or projective) map of the target lattice that never changes the sign of its divisor.
class Reach {
 public:
  // T is the precision in which points are computed: their rounding widens every box.
  template <class T>
  static Reach of(const Item& item, const Matrix& matrix) {
    const double epsilon = std::is_same_v<T, double> ? 2.3e-16 : 1.2e-7;
    return Reach(item, matrix, epsilon);
  }

  // False if nothing is known: every target pixel may read every box.
  bool known() const { return known_; }

  // Target rows along axis a (1: y, 2: z) that may read the box.
  Range rows(const Box& box, int a) const {
    const int64_t size = size_[a];
    if (!known_ || !invertible_ || !is_bounded(box)) return {0, size};
    double low = INFINITY, high = -INFINITY;
    for (int corner = 0; corner < 1 << axes_; ++corner) {
      const double at = pulled_back(box, corner, a);
      if (!is_finite(at)) return {0, size};
      low = at < low ? at : low, high = at > high ? at : high;
    }
    return {to_index(low, size), to_index(high + 1.0, size)};
  }

 private:
  friend class Columns;

  // In pixels, beside what rounding may move a point.
  static constexpr double kMargin = 1e-3;

  Reach(const Item& item, const Matrix& matrix, double epsilon)
      : axes_(item.axes), projective_(item.generator.kind == Kind::homography), m_(matrix) {
    for (int a = 0; a < kMaxAxes; ++a) size_[a] = item.target.size[a];
    known_ = item.generator.is_linear() && find_sign() && find_margin(item, epsilon);
    invertible_ = known_ && invert();
  }

  // Sum of |terms| of a row of the matrix over the target: what its rounding errors scale with.
  double magnitude(int r) const {
    double sum = std::abs(m_.at[r][axes_]);
    for (int b = 0; b < axes_; ++b) sum += std::abs(m_.at[r][b]) * static_cast<double>(size_[b]);
    return sum;
  }

  bool find_sign() {
    sign_ = 1.0, smallest_divisor_ = 1.0;
    if (!projective_) return true;
    double low = INFINITY, high = -INFINITY;
    for (int corner = 0; corner < 4; ++corner) {
      const double w = m_.at[2][0] * (corner & 1 ? static_cast<double>(size_[0] - 1) : 0.0) +
                       m_.at[2][1] * (corner & 2 ? static_cast<double>(size_[1] - 1) : 0.0) + m_.at[2][2];
      low = w < low ? w : low, high = w > high ? w : high;
    }
    sign_ = low > 0.0 ? 1.0 : -1.0;
    smallest_divisor_ = low > 0.0 ? low : -high;
    return low > 0.0 || high < 0.0;
  }

  bool find_margin(const Item& item, double epsilon) {
    margin_ = kMargin;
    const double divisor_error = projective_ ? magnitude(2) : 0.0;
    for (int a = 0; a < axes_; ++a) {
      const double reach = static_cast<double>(item.source.size[a]) + 4.0;
      const double error = 8.0 * epsilon * (magnitude(a) + reach * divisor_error) / smallest_divisor_;
      margin_ = kMargin + error > margin_ ? kMargin + error : margin_;
    }
    return margin_ < 4.0;
  }

  STN_MEMBER bool is_bounded(const Box& box) const {
    for (int a = 0; a < axes_; ++a)
      if (!is_finite(box.low[a]) || !is_finite(box.high[a])) return false;
    return true;
  }

  // Adjugates: the scale of an inverse is free for a projective map, and divided out for the others.
  bool invert() {
    const auto& m = m_.at;
    if (axes_ == 2 && !projective_) {
      const double determinant = m[0][0] * m[1][1] - m[0][1] * m[1][0];
      inverse_[1][0] = -m[1][0] / determinant, inverse_[1][1] = m[0][0] / determinant;
      return is_invertible(determinant);
    }
    double cofactor[3][3];
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < 3; ++c) {
        const int r1 = (r + 1) % 3, r2 = (r + 2) % 3, c1 = (c + 1) % 3, c2 = (c + 2) % 3;
        cofactor[r][c] = m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1];
      }
    const double determinant = m[0][0] * cofactor[0][0] + m[0][1] * cofactor[0][1] + m[0][2] * cofactor[0][2];
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < 3; ++c) inverse_[c][r] = cofactor[r][c] / determinant;
    return is_invertible(determinant);
  }

  bool is_invertible(double determinant) const {
    double scale = 1.0;
    for (int r = 0; r < (projective_ ? 3 : axes_); ++r) scale *= magnitude(r);
    return is_finite(determinant) && std::abs(determinant) > 1e-9 * scale / static_cast<double>(size_[0] + size_[1]);
  }

  // Coordinate a of the target point that reads a corner of the box.
  double pulled_back(const Box& box, int corner, int a) const {
    double at[kMaxAxes];
    for (int b = 0; b < axes_; ++b) at[b] = corner >> b & 1 ? box.high[b] + margin_ : box.low[b] - margin_;
    if (projective_) {
      const auto& n = inverse_;
      const double w = n[2][0] * at[0] + n[2][1] * at[1] + n[2][2];
      // Behind the horizon a corner says nothing about the box: NaN makes the range unknown.
      if (!(w * sign_ > 0.0)) return NAN;
      return (n[a][0] * at[0] + n[a][1] * at[1] + n[a][2]) / w;
    }
    double sum = 0.0;
    for (int b = 0; b < axes_; ++b) sum += inverse_[a][b] * (at[b] - m_.at[b][axes_]);
    return sum;
  }

  int axes_;
  bool projective_;
  Matrix m_;
  int64_t size_[kMaxAxes];
  bool known_ = false, invertible_ = false;
  double sign_ = 1.0, smallest_divisor_ = 1.0, margin_ = kMargin;
  double inverse_[3][3] = {};
};

// The pixels of rows that may read one box.
class Columns {
 public:
  STN_MEMBER Columns(const Reach& reach, const Box& box) : width_(reach.size_[0]), axes_(reach.axes_) {
    if (!reach.known_) return;
    for (int a = 0; a < axes_; ++a) {
      add(reach, a, 1.0, box.low[a] - reach.margin_);
      add(reach, a, -1.0, box.high[a] + reach.margin_);
    }
  }

  STN_MEMBER Range operator()(const Row& row) const {
    double low = 0.0, high = static_cast<double>(width_);
    for (int e = 0; e < count_; ++e) {
      const Limit& limit = limits_[e];
      double constant = limit.by_i * static_cast<double>(row.i) + limit.constant;
      if (axes_ == 3) constant += limit.by_k * static_cast<double>(row.k);
      const double at = constant * limit.scale;
      if (limit.turn > 0.0) low = at > low ? at : low;
      else if (limit.turn < 0.0) high = at < high ? at : high;
      else if (constant < 0.0) return {0, 0};
    }
    const Range range = {to_index(low, width_), to_index(high + 1.0, width_)};
    return range.first < range.last ? range : Range{0, 0};
  }

 private:
  // step·j + by_i·i + by_k·k + constant >= 0, solved for j; turn is the sign of step.
  struct Limit {
    double by_i, by_k, constant, scale, turn;
  };

  // side·(x - bound)·divisor >= 0 is linear in the target pixel.
  STN_MEMBER void add(const Reach& reach, int a, double side, double bound) {
    if (!is_finite(bound)) return;
    const double sign = side * reach.sign_;
    double entry[kMaxAxes + 1];
    for (int b = 0; b <= axes_; ++b) {
      const double divisor = reach.projective_ ? reach.m_.at[2][b] : b == axes_ ? 1.0 : 0.0;
      entry[b] = sign * (reach.m_.at[a][b] - bound * divisor);
    }
    const double step = entry[0];
    limits_[count_++] = {entry[1], axes_ == 3 ? entry[2] : 0.0, entry[axes_], -1.0 / step, step};
  }

  int64_t width_;
  int axes_, count_ = 0;
  Limit limits_[2 * kMaxAxes];
};

// Whether the blocks that may read a box go on in the rows below: nothing is known of columns, or to leave some out
// would not save a single vector.
STN_FUNCTION bool has_readers_across_rows(const Item& item) {
  return !item.generator.is_linear() || item.target.size[0] <= kLanes;
}

// Runs visit(block) over the target pixels of item n that may read a box, in raster order, until it returns false.
template <class Visit>
STN_FUNCTION bool for_readers(const Item& item, int64_t n, const Reach& reach, const Box& box, Visit visit) {
  const int64_t* size = item.target.size;
  const Range depth = item.axes == 3 ? reach.rows(box, 2) : Range{0, size[2]};
  Range height = reach.rows(box, 1);
  if (has_readers_across_rows(item)) {
    if (size[0] * size[1] <= kLanes) height = {0, size[1]};
    const bool whole_planes = height.first == 0 && height.last == size[1];
    bool goes_on = true;
    for (int64_t k = depth.first; goes_on && k < depth.last; k = whole_planes ? depth.last : k + 1) {
      const int64_t last = whole_planes ? depth.last - 1 : k;
      const Range run = {(k * size[1] + height.first) * size[0], (last * size[1] + height.last) * size[0]};
      for_blocks_of_run(item, n, run, [&](const Block& block) { goes_on = goes_on && visit(block); });
    }
    return goes_on;
  }
  const Columns columns(reach, box);
  for (int64_t k = depth.first; k < depth.last; ++k)
    for (int64_t i = height.first; i < height.last; ++i) {
      const Row row = {n, i, k};
      bool goes_on = true;
      for_blocks_of_row(row, columns(row), [&](const Block& block) { goes_on = goes_on && visit(block); });
      if (!goes_on) return false;
    }
  return true;
}

}  // namespace stn::STN_ISA
