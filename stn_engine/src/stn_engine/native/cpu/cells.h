// The sampling plan of a block under bilinear (trilinear) interpolation: which cell every point reads, and
// with what weights. Made once per block, used for every channel.
#pragma once

#include "points.h"

namespace stn::STN_ISA {

// What sixteen points read.
enum class Reads {
  inside,   // whole cells of the map: no bounds test is needed any more
  edge,     // some pixels that are not there
  nothing,  // constants only
};

// Pairs of pixels along x in every row of a cell: (y, z) = (0, 0), (1, 0), (0, 1), (1, 1).
template <int D>
constexpr int kPairs = 1 << (D - 1);

template <class T, int D>
struct CellPlan {
  // Of the map, the same for all blocks.
  int size[D], stride[D];
  int step[D];        // from a pixel of a cell to its neighbour; 0 where the map has only one
  int64_t ahead = 0;  // from a pixel that is read to one that soon will be

  Reads reads[kBlock / kLanes];
  alignas(64) int offset[kBlock];  // of the cell's first pixel
  alignas(64) T weight[D][2][kBlock];
  // Where sixteen points read whole cells, slopes are 1 and the rest is not filled in.
  alignas(64) T slope[D][kBlock];                   // the derivative by a coordinate is slope·(second pixel - first)
  alignas(64) Mask<T> there[kPairs<D>][2][kBlock];  // pixels of the cell that are read at all
  alignas(64) Mask<T> live[kBlock];                 // points that read anything
  alignas(64) Mask<T> whole[kBlock];                // points that read a whole cell
  alignas(64) Mask<T> finite[kBlock];

  STN_MEMBER CellPlan() {}

  STN_MEMBER explicit CellPlan(const Map& map) { lie_over(map, 0); }

  STN_MEMBER void lie_over(const Map& map, int64_t reads_ahead) {
    ahead = reads_ahead;
    for (int a = 0; a < D; ++a) {
      size[a] = static_cast<int>(map.size[a]);
      stride[a] = static_cast<int>(map.stride[a]);
      step[a] = size[a] > 1 ? stride[a] : 0;
    }
  }

  // Of the sixteen points to which point b belongs.
  STN_MEMBER Reads reads_of(int b) const { return reads[b / kLanes]; }
};

// Replaces coordinates that are not finite by 0 and says which they were.
template <class T, int D>
STN_FUNCTION Lanes<Mask<T>> keep_finite(Points<T, D>& points, int b) {
  Lanes<Mask<T>> finite = is_finite(load(points.at[0] + b));
  for (int a = 1; a < D; ++a) finite &= is_finite(load(points.at[a] + b));
  for (int a = 0; a < D; ++a) store(choose(finite, load(points.at[a] + b), Lanes<T>{}), points.at[a] + b);
  return finite;
}

template <class T>
STN_FUNCTION Lanes<T> magnitude(const Lanes<T>& x) {
  return choose(x < Lanes<T>{}, -x, x);
}

template <class T>
STN_FUNCTION bool all_near(const T* x, int lanes, T bound) {
  Lanes<T> farthest{};
  for (int b = 0; b < lanes; b += kLanes) {
    const Lanes<T> distance = magnitude(load(x + b));
    farthest = choose(distance > farthest, distance, farthest);
  }
  return all_of(farthest <= Lanes<T>::all(bound));
}

template <class T>
STN_FUNCTION Lanes<T> remainders(const Lanes<T>& x, T period) {
  alignas(64) T lanes[kLanes];
  store(x, lanes);
  for (int l = 0; l < kLanes; ++l) lanes[l] = std::fmod(lanes[l], period);
  return load(lanes);
}

// Coordinates mirrored into the map, exactly, whatever their magnitude; those within it keep their last bit, which
// the way to the mirror and back would round.
template <class T>
STN_FUNCTION void mirror_axis(Mirror<T> mirror, T last, int lanes, T* x, T* slope) {
  const T period = 2 * mirror.span;
  const bool near = all_near(x, lanes, static_cast<T>(kExactPeriods) - period);
  for (int b = 0; b < lanes; b += kLanes) {
    const Lanes<T> at = load(x + b), distance = magnitude(at - mirror.low);
    const Lanes<T> rest = near ? near_remainder(distance, period) : remainders(distance, period);
    const Padded<Lanes<T>> kept = clipped(at, Lanes<T>::all(1), last), moved = reflected(at, rest, mirror, last);
    const Lanes<Mask<T>> inside = kept.x == at;
    store(choose(inside, kept.x, moved.x), x + b);
    store(choose(inside, kept.slope, moved.slope), slope + b);
  }
}

// Coordinates of one axis as a padding other than a constant moves them, with the slopes of that.
template <class T>
STN_LARGE_FUNCTION void pad_axis(const Sampling& sampling, int64_t size, int lanes, T* x, T* slope) {
  const T last = static_cast<T>(size - 1);
  if (sampling.padding == Padding::reflection)
    return mirror_axis(mirror_of(last, sampling.unit == Unit::normalized), last, lanes, x, slope);
  for (int b = 0; b < lanes; b += kLanes) {
    const Padded<Lanes<T>> moved = clipped(load(x + b), Lanes<T>::all(1), last);
    store(moved.x, x + b);
    store(moved.slope, slope + b);
  }
}

STN_FUNCTION bool pads_by_constant(const Sampling& sampling) {
  return sampling.padding == Padding::zeros || sampling.padding == Padding::fill;
}

// What the cells of sixteen points have, axis by axis.
template <class T, int D>
struct CellLanes {
  Lanes<Mask<T>> live, whole;
  Lanes<Mask<T>> in[D][2];
  Lanes<int32_t> offset{};

  STN_MEMBER explicit CellLanes(const Lanes<Mask<T>>& finite) : live(finite), whole(finite) {}

  STN_MEMBER void add(CellPlan<T, D>& plan, int a, int b, const Cell<Lanes<T>>& cell) {
    store(cell.weight0, plan.weight[a][0] + b);
    store(cell.weight1, plan.weight[a][1] + b);
    store(cell.slope, plan.slope[a] + b);
    in[a][0] = cell.in0, in[a][1] = cell.in1;
    offset += converted<int32_t>(cell.first) * plan.stride[a];
    live &= cell.in0 | cell.in1;
    whole &= cell.in0 & cell.in1;
  }

  STN_MEMBER void put(CellPlan<T, D>& plan, int b) const {
    for (int pair = 0; pair < kPairs<D>; ++pair)
      for (int side = 0; side < 2; ++side) {
        Lanes<Mask<T>> there = live & in[0][side] & in[1][pair & 1];
        if constexpr (D == 3) there &= in[2][pair >> 1];
        store(there, plan.there[pair][side] + b);
      }
    store(offset, plan.offset + b);
    store(live, plan.live + b);
    store(whole, plan.whole + b);
  }
};

// Whether sixteen points read nothing but whole cells. On the outermost centres a padding that moves coordinates has
// no slope.
template <class T, int D>
STN_FUNCTION bool are_inside(const Sampling& sampling, const Points<T, D>& points, const CellPlan<T, D>& plan, int b) {
  const bool constant = pads_by_constant(sampling);
  Lanes<Mask<T>> all = Lanes<Mask<T>>::all(-1);
  for (int a = 0; a < D; ++a) {
    const Lanes<T> x = load(points.at[a] + b), first{};
    all &= (constant ? x >= first : x > first) & (x < Lanes<T>::all(static_cast<T>(plan.size[a] - 1)));
  }
  return all_of(all);
}

// Cells of sixteen points that are inside.
template <class T, int D>
STN_FUNCTION void plan_inside(const Points<T, D>& points, CellPlan<T, D>& plan, int b) {
  Lanes<int32_t> offset{};
  for (int a = 0; a < D; ++a) {
    const Lanes<T> x = load(points.at[a] + b), first = floor_of(x), t = x - first;
    store(T(1) - t, plan.weight[a][0] + b);
    store(t, plan.weight[a][1] + b);
    offset += converted<int32_t>(first) * plan.stride[a];
  }
  store(offset, plan.offset + b);
  plan.reads[b / kLanes] = Reads::inside;
}

// The subgradient of equations (2) and (3), where floor and ceil coincide.
template <class T>
STN_FUNCTION Lanes<T> flat_at_integers(const Lanes<T>& x, const Lanes<T>& slope) {
  return choose(x == floor_of(x), Lanes<T>{}, slope);
}

// Cells of sixteen points, of which some may lie outside.
template <class T, int D>
STN_LARGE_FUNCTION void plan_edge(const Sampling& sampling, Points<T, D>& points, CellPlan<T, D>& plan, int b) {
  const bool constant = pads_by_constant(sampling);
  const Lanes<Mask<T>> finite = keep_finite(points, b);
  CellLanes<T, D> cells(finite);
  Lanes<Mask<T>> straight = Lanes<Mask<T>>::all(-1);
  for (int a = 0; a < D; ++a) {
    T* x = points.at[a] + b;
    alignas(64) T slope[kLanes];
    Cell<Lanes<T>> cell;
    if (constant) {
      store(clamp_to(load(x), T(-2), static_cast<T>(plan.size[a])), x);
      cell = constant_cell<T>(load(x), plan.size[a]);
    } else {
      pad_axis(sampling, plan.size[a], kLanes, x, slope);
      cell = inner_cell<T>(Padded<Lanes<T>>{load(x), load(slope)}, plan.size[a]);
    }
    if (sampling.zero_subgradient) cell.slope = flat_at_integers(load(x), cell.slope);
    cells.add(plan, a, b, cell);
    straight &= cell.slope == Lanes<T>::all(1);
  }
  cells.put(plan, b);
  store(finite, plan.finite + b);
  plan.reads[b / kLanes] = all_of(cells.whole & straight) ? Reads::inside
                           : any_of(cells.live)           ? Reads::edge
                                                          : Reads::nothing;
}

// From here on float32 may round the last pixel of an axis up.
constexpr int64_t kExactSizes = 1 << 24;

// Whether plans can hold the offsets within a channel.
STN_FUNCTION bool has_small_offsets(const Map& map) {
  double reach = 0;
  for (int a = 0; a < kMaxAxes; ++a) {
    if (map.size[a] > kExactSizes) return false;
    reach += static_cast<double>(map.size[a]) * std::abs(static_cast<double>(map.stride[a]));
  }
  return reach < 2147483648.0;
}

// The plan of a block; moves the points as padding does.
template <class T, int D>
STN_FUNCTION void plan_cells(const Sampling& sampling, int count, Points<T, D>& points, CellPlan<T, D>& plan) {
  for (int b = 0; b < count; b += kLanes)
    if (!sampling.zero_subgradient && are_inside(sampling, points, plan, b)) plan_inside(points, plan, b);
    else plan_edge(sampling, points, plan, b);
}

}  // namespace stn::STN_ISA
