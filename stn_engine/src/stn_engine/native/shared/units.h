// Exact changes between the unit of a transform and pixels, axis by axis (section 3 of the mathematics).
//
//     target lattice   x_t  = (p·j + q) / r        source pixel   x_px = (u·x + v) / w
//
//     convention                        p   q       r         u      v      w
//     normalized, align_corners=False   2   1-W'    W'        W      W-1    2
//     normalized, align_corners=True    2   1-W'    W'-1      W-1    W-1    2
//     (the same with W' = 1)            0   0       1
//     pixel                             1   0       1         1      0      1
//
// Every ratio that occurs is one division of integers, so an identity stays one to the last bit.
#pragma once

#include "common.h"

namespace stn {

struct TargetAxis {
  long long p, q, r;
};

struct SourceAxis {
  long long u, v, w;
};

STN_FUNCTION TargetAxis target_axis(long long size, Unit unit) {
  if (unit == Unit::pixel) return {1, 0, 1};
  if (unit == Unit::normalized) return {2, 1 - size, size};
  if (size == 1) return {0, 0, 1};
  return {2, 1 - size, size - 1};
}

STN_FUNCTION SourceAxis source_axis(long long size, Unit unit) {
  if (unit == Unit::pixel) return {1, 0, 1};
  return {unit == Unit::normalized ? size : size - 1, size - 1, 2};
}

STN_FUNCTION double ratio(long long numerator, long long denominator) {
  return static_cast<double>(numerator) / static_cast<double>(denominator);
}

// A coordinate of a sampling grid in pixels, in PyTorch's own order of operations, so that ties of nearest fall on the
// same side.
template <class P>
STN_FUNCTION P in_pixels(P x, P size, Unit unit) {
  if (unit == Unit::normalized) return ((x + 1) * size - 1) / 2;
  if (unit == Unit::normalized_corners) return (x + 1) / 2 * (size - 1);
  return x;
}

}  // namespace stn
