// The bilinear sampler and its derivative by coordinates, one channel at a time over a block of points:
// equations (1) to (3).
#pragma once

#include "cells.h"
#include "pairs.h"

namespace stn::STN_ISA {

// What points that read nothing return.
template <class T>
struct Constants {
  T outside, fill;
};

template <class T>
STN_FUNCTION Constants<T> constants_of(const Sampling& sampling, int64_t channel) {
  return {static_cast<T>(sampling.outside_of(channel)), static_cast<T>(sampling.fill_of(channel))};
}

template <class T, int D>
STN_FUNCTION int pair_offset(const CellPlan<T, D>& plan, int pair) {
  int offset = pair & 1 ? plan.step[1] : 0;
  if constexpr (D == 3) offset += pair & 2 ? plan.step[2] : 0;
  return offset;
}

// The pixels of sixteen cells: pixel[pair][side].
template <class T, int D>
struct CellPixels {
  Lanes<T> at[kPairs<D>][2];
};

// Where the pixel is there at all, itself; elsewhere what lies outside.
template <class T, int D>
STN_FUNCTION void hide_missing(const CellPlan<T, D>& plan, int b, int pair, T outside, Pairs<T>& pixels) {
  const Lanes<Mask<T>> left = load(plan.there[pair][0] + b), right = load(plan.there[pair][1] + b);
  if (outside == T(0)) {
    pixels.left = masked(left, pixels.left);
    pixels.right = masked(right, pixels.right);
  } else {
    const Lanes<T> elsewhere = Lanes<T>::all(outside);
    pixels.left = choose(left, pixels.left, elsewhere);
    pixels.right = choose(right, pixels.right, elsewhere);
  }
}

template <class S, class T, int D, bool Adjacent>
STN_FUNCTION CellPixels<T, D> load_cells(const S* channel, const CellPlan<T, D>& plan, int b, T outside) {
  CellPixels<T, D> cells;
#pragma GCC unroll 4
  for (int pair = 0; pair < kPairs<D>; ++pair) {
    Pairs<T> pixels = load_lanes<S, Adjacent>(channel + pair_offset(plan, pair), plan.offset + b, plan.step[0]);
    if (plan.reads_of(b) == Reads::edge) hide_missing(plan, b, pair, outside, pixels);
    cells.at[pair][0] = pixels.left, cells.at[pair][1] = pixels.right;
  }
  return cells;
}

// The weighted sum of two values along an axis.
template <class T, int D>
STN_FUNCTION Lanes<T> blend(const CellPlan<T, D>& plan, int axis, int b, const Lanes<T>& first,
                            const Lanes<T>& second) {
  return first * load(plan.weight[axis][0] + b) + second * load(plan.weight[axis][1] + b);
}

// Equation (1), x innermost, then y, then z.
template <class T, int D>
STN_FUNCTION Lanes<T> blend_cells(const CellPlan<T, D>& plan, int b, const CellPixels<T, D>& cells) {
  Lanes<T> row[kPairs<D>];
  for (int pair = 0; pair < kPairs<D>; ++pair) row[pair] = blend(plan, 0, b, cells.at[pair][0], cells.at[pair][1]);
  if constexpr (D == 2) return blend(plan, 1, b, row[0], row[1]);
  else return blend(plan, 2, b, blend(plan, 1, b, row[0], row[1]), blend(plan, 1, b, row[2], row[3]));
}

// Points that read nothing return constants.
template <class T>
STN_FUNCTION Lanes<T> with_constants(const Mask<T>* live, const Mask<T>* finite, const Constants<T>& constants,
                                     Lanes<T> values) {
  const Lanes<T> outside = Lanes<T>::all(constants.outside), fill = Lanes<T>::all(constants.fill);
  return choose(load(live), values, choose(load(finite), outside, fill));
}

// V of one channel at the points of a block.
template <class S, class T, int D, bool Adjacent>
STN_LARGE_FUNCTION void read_cells(const S* channel, const CellPlan<T, D>& plan, int count,
                                   const Constants<T>& constants, T* out) {
  for (int b = 0; b < count; b += kLanes) {
    Lanes<T> values{};
    if (plan.reads_of(b) != Reads::nothing)
      values = blend_cells(plan, b, load_cells<S, T, D, Adjacent>(channel, plan, b, constants.outside));
    if (plan.reads_of(b) != Reads::inside) values = with_constants(plan.live + b, plan.finite + b, constants, values);
    store_some<T>(values, count - b < kLanes ? count - b : kLanes, out + b);
  }
}

// Sums over channels from which the derivatives by coordinates follow. Differences of neighbours come first,
// so that a large common offset of the pixels cancels exactly.
template <class T, int D>
struct CellContrast {
  alignas(64) T along[D][kPairs<D>][kBlock];  // G·(second - first) along an axis, at the other axes' corners
};

// Which pixels of a cell differ along an axis at one of the other axes' corners: (pair, side) of both.
struct Edge {
  int first_pair, first_side, second_pair, second_side;
};

[[maybe_unused]] static constexpr Edge edge_of(int axis, int corner) {
  const int low = corner & 1, high = corner >> 1;
  if (axis == 0) return {corner, 0, corner, 1};
  if (axis == 1) return {2 * high, low, 2 * high + 1, low};
  return {high, low, high + 2, low};
}

template <class T, int D>
STN_FUNCTION void add_contrast(const CellPixels<T, D>& cells, int b, const T* grad, CellContrast<T, D>& contrast) {
  const Lanes<T> g = load(grad + b);
  for (int a = 0; a < D; ++a)
    for (int corner = 0; corner < kPairs<D>; ++corner) {
      const Edge edge = edge_of(a, corner);
      T* sum = contrast.along[a][corner] + b;
      const Lanes<T> difference =
          cells.at[edge.second_pair][edge.second_side] - cells.at[edge.first_pair][edge.first_side];
      store(load(sum) + g * difference, sum);
    }
}

template <class S, class T, int D, bool Adjacent>
STN_LARGE_FUNCTION void contrast_cells(const S* channel, const CellPlan<T, D>& plan, int count, T outside,
                                       const T* grad, CellContrast<T, D>& contrast) {
  for (int b = 0; b < whole_lanes(count); b += kLanes)
    add_contrast<T, D>(load_cells<S, T, D, Adjacent>(channel, plan, b, outside), b, grad, contrast);
}

// G·∂V/∂(x, y, z) in pixels.
template <class T, int D>
struct ByCoordinate {
  alignas(64) T at[D][kBlock];
};

// Equations (2) and (3): the gradient by each coordinate, 0 wherever the value does not depend on it.
template <class T, int D>
STN_LARGE_FUNCTION void coordinate_gradient(const CellPlan<T, D>& plan, int count, const CellContrast<T, D>& contrast,
                                            ByCoordinate<T, D>& out) {
  for (int a = 0; a < D; ++a) {
    const int low = a == 0 ? 1 : 0, high = a == 2 ? 1 : 2;
    const auto& along = contrast.along[a];
    for (int b = 0; b < whole_lanes(count); b += kLanes) {
      Lanes<T> sum = blend(plan, low, b, load(along[0] + b), load(along[1] + b));
      if constexpr (D == 3)
        sum = blend(plan, high, b, sum, blend(plan, low, b, load(along[2] + b), load(along[3] + b)));
      if (plan.reads_of(b) != Reads::inside) {
        const Lanes<T> slope = choose(load(plan.live + b), load(plan.slope[a] + b), Lanes<T>{});
        sum = choose(slope == Lanes<T>{}, Lanes<T>{}, slope * sum);
      }
      store(sum, out.at[a] + b);
    }
  }
}

}  // namespace stn::STN_ISA
