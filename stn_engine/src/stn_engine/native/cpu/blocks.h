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

// Half-open: pixels of a row, or a run of pixels in raster order, in which rows and planes follow one another.
using Range = IndexRange<int64_t>;

STN_FUNCTION int64_t clamped(int64_t value, Range to) {
  return value < to.first ? to.first : value > to.last ? to.last : value;
}

// Pixels from j on: a piece of a row, or of a run that goes on in the rows below.
struct Block {
  Row row;
  int64_t j;
  int count;
  int64_t width = 0, height = 0;  // of the target, in a run; 0 in a piece of one row
};

// In a channel of a Map, or in a component of a PointField.
template <class Memory>
STN_FUNCTION int64_t offset_of(const Memory& memory, const Row& row, int64_t j) {
  return j * memory.stride[0] + row.i * memory.stride[1] + row.k * memory.stride[2];
}

// Whether the pixels of a block are evenly spaced in memory.
template <class Memory>
STN_FUNCTION bool is_even(const Memory& memory, const Block& block) {
  return memory.even || block.width == 0;
}

// Runs visit(first, count, offset) over pieces of lanes [first, last) of a block whose pixels are evenly spaced.
template <class Memory, class Visit>
STN_FUNCTION void for_pieces(const Memory& memory, const Block& block, int first, int last, Visit visit) {
  if (is_even(memory, block)) return visit(first, last - first, offset_of(memory, block.row, block.j + first));
  Row row = block.row;
  for (int64_t b = 0, j = block.j; b < last; j = 0) {
    const int64_t end = block.width - j < last - b ? b + block.width - j : last, from = b < first ? first : b;
    if (from < end) visit(static_cast<int>(from), static_cast<int>(end - from), offset_of(memory, row, j + from - b));
    b = end;
    if (++row.i == block.height) row.i = 0, ++row.k;
  }
}

template <class Memory, class Visit>
STN_FUNCTION void for_pieces(const Memory& memory, const Block& block, Visit visit) {
  for_pieces(memory, block, 0, block.count, visit);
}

// Channel c of the item of a row.
template <class S>
STN_FUNCTION S* channel_of(const Map& map, const Row& row, int64_t c) {
  return static_cast<S*>(map.data) + row.n * map.batch_stride + c * map.channel_stride;
}

template <class S>
STN_FUNCTION void store_numbers(const Compute<S>* values, int count, int64_t stride, S* out) {
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
  store_numbers<S>(numbers, count, stride, out);
}

// Values of lanes [first, first + count) of a block, into a channel of the target.
template <class S>
STN_FUNCTION void store_values(const Compute<S>* values, const Map& target, const Block& block, int first, int count,
                               S* channel) {
  for_pieces(target, block, first, first + count, [&](int b, int some, int64_t offset) {
    store_numbers<S>(values + (b - first), some, target.stride[0], channel + offset);
  });
}

// Runs visit(block) over a range of a row.
template <class Visit>
STN_FUNCTION void for_blocks_of_row(const Row& row, Range range, Visit visit) {
  for (int64_t j = range.first; j < range.last; j += kBlock)
    visit(Block{row, j, static_cast<int>(range.last - j < kBlock ? range.last - j : kBlock)});
}

// Runs visit(row, range) over the pieces of rows that make up a run.
template <class Visit>
STN_FUNCTION void for_rows_of_run(const Item& item, int64_t n, Range run, Visit visit) {
  const int64_t width = item.target.size[0];
  for (int64_t pixel = run.first; pixel < run.last;) {
    const int64_t j = pixel % width, count = width - j < run.last - pixel ? width - j : run.last - pixel;
    visit(row_of(item, n, pixel / width), Range{j, j + count});
    pixel += count;
  }
}

// Runs visit(block) over a run, whose blocks are as full as they can be, however short rows are.
template <class Visit>
STN_FUNCTION void for_blocks_of_run(const Item& item, int64_t n, Range run, Visit visit) {
  const int64_t width = item.target.size[0], height = item.target.size[1];
  Row row = row_of(item, n, run.first / width);
  int64_t j = run.first % width;
  for (int64_t pixel = run.first; pixel < run.last; pixel += kBlock) {
    const int count = static_cast<int>(run.last - pixel < kBlock ? run.last - pixel : kBlock);
    if (j + count <= width) visit(Block{row, j, count});
    else visit(Block{row, j, count, width, height});
    if ((j += count) < width) continue;
    row = row_of(item, n, (pixel + count) / width);
    j = (pixel + count) % width;
  }
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
        start_{static_cast<int32_t>(block.j), static_cast<int32_t>(block.row.i), static_cast<int32_t>(block.row.k)},
        size_{static_cast<int32_t>(block.width), static_cast<int32_t>(block.height)},
        last_(block.count - 1),
        in_run_(block.width > 0) {
    for (int a = 0; in_run_ && a < 2; ++a) share_[a] = 1.0f / static_cast<float>(size_[a]);
  }

  STN_MEMBER Places<E, D> operator()(int b) const {
    const Lanes<int32_t> lane = at_most(counting<int32_t>() + b, last_);
    Places<E, D> places;
    if (in_run_) {
      Lanes<int32_t> at = lane + start_[0];
      for (int a = 0; a + 1 < D; ++a) {
        const Lanes<int32_t> turns = turns_of(at, a);
        places.at[a] = converted<E>(at - turns * size_[a]);
        at = turns + start_[a + 1];
      }
      places.at[D - 1] = converted<E>(at);
    } else {
      places.at[0] = converted<E>(lane) + first_[0];
      for (int a = 1; a < D; ++a) places.at[a] = Lanes<E>::all(first_[a]);
    }
    return places;
  }

 private:
  // How often an axis has ended before a place beyond its first pixel: once at most, if it is longer than a block.
  // Otherwise half a pixel is more than rounding can move a quotient of numbers below 128.
  STN_MEMBER Lanes<int32_t> turns_of(const Lanes<int32_t>& at, int a) const {
    if (size_[a] >= kBlock) return -(at - size_[a] >= Lanes<int32_t>{});
    return converted<int32_t>((converted<float>(at) + 0.5f) * share_[a]);
  }

  E first_[kMaxAxes];
  int32_t start_[kMaxAxes], size_[2], last_;
  bool in_run_;
  float share_[2] = {};
};

// Whether blocks go on in the rows below: pixels are never left out, or rows are shorter than a block.
STN_FUNCTION bool has_blocks_across_rows(const Item& item) {
  return !item.generator.is_linear() || item.target.size[0] < kBlock;
}

}  // namespace stn::STN_ISA
