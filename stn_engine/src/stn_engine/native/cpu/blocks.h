// Target pixels that are worked on together: where they are on the lattice and in memory.
#pragma once

#include "lanes.h"

namespace stn::STN_ISA {

struct Row {
  int64_t n;     // item of the batch
  int64_t i, k;  // y and z of the target pixels
};

STN_FUNCTION Row row_of(const Item& item, int64_t n, int64_t row) {
  return {n, row % item.target.size[1], row / item.target.size[1]};
}

// Half-open ranges of target pixels.
struct Range {
  int64_t first, last;
};

// Target pixels that are worked on together.
constexpr int kBlock = 64;

// Pixels from j on: a piece of a row, or of rows that follow one another where these are shorter than a block.
struct Block {
  Row row;
  int64_t j;
  int count;
  int64_t width = 0, height = 0;  // of the rows that follow one another; 0 for a piece of one row
};

// The first pixel of a block in a map of the target's size.
template <class S>
STN_FUNCTION S* start_of(const Map& map, const Block& block) {
  return static_cast<S*>(map.data) + block.row.n * map.batch_stride + block.j * map.stride[0] +
         block.row.i * map.stride[1] + block.row.k * map.stride[2];
}

template <class S>
STN_FUNCTION void store_row(const Compute<S>* values, int count, int64_t stride, S* out) {
  if (stride == 1)
    for (int b = 0; b < count; ++b) out[b] = stored<S>(values[b]);
  else
    for (int b = 0; b < count; ++b) out[b * stride] = stored<S>(values[b]);
}

// The first `count` of sixteen values.
template <class S>
STN_FUNCTION void store_lanes(const Lanes<Compute<S>>& values, int count, int64_t stride, S* out) {
  if constexpr (std::is_same_v<S, Compute<S>>)
    if (stride == 1) return store_some(values, count, out);
  alignas(64) Compute<S> numbers[kLanes];
  store(values, numbers);
  store_row<S>(numbers, count, stride, out);
}

// Runs visit(block) over a range of a row.
template <class Visit>
STN_FUNCTION void for_pieces(const Row& row, Range range, Visit visit) {
  for (int64_t j = range.first; j < range.last; j += kBlock)
    visit(Block{row, j, static_cast<int>(range.last - j < kBlock ? range.last - j : kBlock)});
}

// Lattice coordinates j, i and k of sixteen target pixels.
template <class E, int D>
struct Places {
  Lanes<E> at[D];
};

// Gives the places of a block's pixels; lanes beyond the last pixel repeat it.
template <class E, int D>
class Placer {
 public:
  STN_MEMBER explicit Placer(const Block& block)
      : first_{static_cast<E>(block.j), static_cast<E>(block.row.i), static_cast<E>(block.row.k)},
        size_{static_cast<E>(block.width), static_cast<E>(block.height)},
        last_(block.count - 1),
        folded_(block.width > 0) {
    if (folded_) share_[0] = E(1) / size_[0], share_[1] = E(1) / size_[1];
  }

  STN_MEMBER Places<E, D> operator()(int b) const {
    Places<E, D> places;
    places.at[0] = converted<E>(at_most(counting<int32_t>() + b, last_)) + first_[0];
    for (int a = 1; a < D; ++a) places.at[a] = Lanes<E>::all(first_[a]);
    if (folded_)
      for (int a = 0; a + 1 < D; ++a) fold(places, a);
    return places;
  }

 private:
  // Half a pixel is more than rounding can move a quotient of numbers below 2^17.
  STN_MEMBER void fold(Places<E, D>& places, int a) const {
    const Lanes<E> turns = floor_of((places.at[a] + E(0.5)) * share_[a]);
    places.at[a] = places.at[a] - turns * size_[a];
    places.at[a + 1] += turns;
  }

  E first_[kMaxAxes], size_[2], share_[2] = {};
  int32_t last_;
  bool folded_;
};

// Rows so short that blocks take several of them; their pixels must follow one another in memory.
STN_FUNCTION bool has_folded_rows(const Item& item) {
  const Map& target = item.target;
  const int64_t row = target.size[0] * target.stride[0], plane = target.size[1] * row;
  return item.generator.is_linear() && target.size[0] < kBlock && target.size[1] < 1 << 16 &&
         (target.size[1] == 1 || target.stride[1] == row) && (target.size[2] == 1 || target.stride[2] == plane);
}

}  // namespace stn::STN_ISA
