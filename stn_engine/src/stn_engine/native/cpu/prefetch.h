// Asks the cache for pixels that later blocks will read: no hardware foresees reads along slanted lines.
#pragma once

#include "cells.h"

namespace stn::STN_ISA {

// How far in the memory of a channel reads move with kRowsAhead rows of the target, seen at its middle; 0 where
// that is not known, or rows are shorter than blocks.
template <class T, int D>
STN_LARGE_FUNCTION int64_t prefetch_distance(const Problem& problem, int64_t n) {
  const int64_t *size = problem.target.size, j = size[0] / 2;
  if (size[0] < kBlock) return 0;
  const PointSource<T, D> source(problem, n);
  Points<T, D> here, below;
  source.fill(Block{{n, size[1] / 2, size[2] / 2}, j, 1}, here);
  source.fill(Block{{n, at_most(size[1] / 2 + kRowsAhead, size[1] - 1), size[2] / 2}, j, 1}, below);
  int64_t distance = 0;
  for (int a = 0; a < D; ++a) {
    const T moved = below.at[a][0] - here.at[a][0];
    if (!(moved * moved < T(kExactSizes))) return 0;
    distance += static_cast<int64_t>(moved) * problem.source.stride[a];
  }
  return distance;
}

// Asks for one pixel of eight: no two of them share a cache line only where reads are much slanted.
template <class S>
STN_FUNCTION void prefetch(const S* channel, const int* offset, int count, int64_t ahead) {
  for (int b = 0; b < count; b += 8) __builtin_prefetch(channel + offset[b] + ahead);
}

template <class S, class T, int D>
STN_FUNCTION void prefetch(const S* channel, const CellPlan<T, D>& plan, int count) {
  if (plan.ahead != 0) prefetch(channel, plan.offset, count, plan.ahead);
}

}  // namespace stn::STN_ISA
