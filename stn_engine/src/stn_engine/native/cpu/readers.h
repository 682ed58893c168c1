// Target pixels that may read a box of source pixels: never too few, a few too many. `shared/preimage.h` says how they
// are found.
#pragma once

#include "../shared/preimage.h"
#include "points.h"

namespace stn::STN_ISA {

// Up to here, in pixels, rounding may move points of which anything is taken for known.
constexpr double kLargestMargin = 4.0;

// What is known of the matrix of an item, whose points are computed in precision T.
template <class T, int D>
class Readers {
 public:
  Readers(const Item& item, const Matrix& matrix) : target_(item.target.size) {
    if (!item.generator.is_linear()) return;
    preimage_.projective = item.generator.kind == Kind::homography;
    for (int r = 0; r < kMaxRows; ++r)
      for (int c = 0; c <= kMaxAxes; ++c) preimage_.row[r][c] = matrix.at[r][c];
    find_margins<D>(preimage_, target_, item.source.size, std::is_same_v<T, double> ? 2.3e-16 : 1.2e-7);
    is_known_ = preimage_.sign != 0.0;
    for (int a = 0; a < D; ++a) {
      is_known_ &= preimage_.margin[a] < kLargestMargin;  // false for NaN
      margin_ = larger(margin_, preimage_.margin[a]);
    }
  }

  // False if every target pixel may read every box.
  bool is_known() const { return is_known_; }

  // Finds more of them: which rows may read a box.
  void invert() {
    if (is_known_) stn::invert<D>(preimage_, target_);
  }

  // Target rows along axis a (1: y, 2: z) that may read the box; all that are not known not to, after invert().
  Range rows(const Box<D>& box, int a) const {
    Range window[kMaxAxes] = {{0, target_[0]}, {0, target_[1]}, {0, target_[2]}};
    if (!is_known_ || !preimage_.invertible || !box.is_bounded()) return window[a];
    double centre[kMaxAxes], half[kMaxAxes];
    for (int b = 0; b < D; ++b) {
      centre[b] = (box.low[b] + box.high[b]) / 2.0;
      half[b] = (box.high[b] - box.low[b]) / 2.0 + preimage_.margin[b];
    }
    if (preimage_.projective) {
      pull_back_projective(preimage_, centre, half, target_, window);
      return window[a];
    }
    return pull_back_affine(preimage_, centre, preimage_extent(preimage_, half, a), a, target_[a]);
  }

  const Preimage<D>& preimage() const { return preimage_; }
  int64_t width() const { return target_[0]; }

  // What rounding may move points, in pixels, and kMargin.
  double margin() const { return margin_; }

 private:
  const int64_t* target_;
  Preimage<D> preimage_{};
  double margin_ = kMargin;
  bool is_known_ = false;
};

// The pixels of rows that may read one box. Sums of a gradient begin where these do: their last bits depend on the very
// bounds that are found here.
template <int D>
class ColumnsOfBox {
 public:
  template <class T>
  STN_MEMBER ColumnsOfBox(const Readers<T, D>& readers, const Box<D>& box) : width_(readers.width()) {
    if (!readers.is_known()) return;
    const double none[kMaxAxes] = {};
    for_half_planes(readers.preimage(), grown(box, readers.margin()), readers.preimage().sign, none,
                    [&](const HalfPlane& one) { half_planes_[count_++] = one; });
  }

  STN_MEMBER Range operator()(const Row& row) const {
    Columns<D> columns = {0.0, static_cast<double>(width_)};
    for (int e = 0; e < count_; ++e) columns.cut(half_planes_[e], row.i, row.k);
    const Range range = {index_below(columns.low), index_below(columns.high + 1.0)};
    return range.first < range.last ? range : Range{0, 0};
  }

 private:
  STN_MEMBER static Box<D> grown(const Box<D>& box, double margin) {
    Box<D> larger = box;
    for (int a = 0; a < D; ++a) {
      if (box.low[a] > -kFar) larger.low[a] -= margin;
      if (box.high[a] < kFar) larger.high[a] += margin;
    }
    return larger;
  }

  STN_MEMBER int64_t index_below(double value) const {
    return value <= 0.0 ? 0 : value >= static_cast<double>(width_) ? width_ : static_cast<int64_t>(value);
  }

  int64_t width_;
  int count_ = 0;
  HalfPlane half_planes_[2 * D];
};

// Whether the blocks that may read a box go on in the rows below: nothing is known of columns, or to leave some out
// would not save a single vector.
STN_FUNCTION bool has_readers_across_rows(const Item& item) {
  return !item.generator.is_linear() || item.target.size[0] <= kLanes;
}

// Runs visit(block) over the target pixels of item n that may read a box, in raster order, until it returns false.
template <class T, int D, class Visit>
STN_FUNCTION bool for_readers(const Item& item, int64_t n, const Readers<T, D>& readers, const Box<D>& box,
                              Visit visit) {
  const int64_t* size = item.target.size;
  const Range depth = D == 3 ? readers.rows(box, 2) : Range{0, size[2]};
  Range height = readers.rows(box, 1);
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
  const ColumnsOfBox<D> columns(readers, box);
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
