// Which target pixels can read a source pixel. `shared/preimage.h` says how they are found.
#pragma once

#include "points.cuh"

namespace stn {

using Range = IndexRange<int>;

// How far from a source pixel points lie that read it.
constexpr double kTapReach = K == 4 ? 2.0 : K == 2 ? 1.0 : 0.5;

// What all tiles of a theta need to know of it.
struct PixelPreimage : Preimage<D> {
  double half[kMaxAxes];    // of the box around a source pixel whose preimage is sought
  double extent[kMaxAxes];  // of that preimage; affine maps
  int finite;
  int always_few;  // whether no pixel has more than kFewCandidates
};

static_assert(sizeof(PixelPreimage) <= kPreimageBytes, "the host takes memory for smaller ones");

STN_FUNCTION void find_preimage(const Descriptor& problem, const double* entries, PixelPreimage& preimage) {
  preimage.projective = static_cast<Kind>(problem.kind) == Kind::homography;
  preimage.finite = true;
  for (int e = 0; e < problem.entries; ++e) {
    preimage.row[e / (D + 1)][e % (D + 1)] = entries[e];
    preimage.finite &= is_finite(static_cast<T>(entries[e]));
  }
  preimage.always_few = !preimage.finite;
  if (!preimage.finite) return;
  find_margins<D>(preimage, problem.target.size, problem.source.size, sizeof(T) == 8 ? 2.3e-16 : 1.2e-7);
  invert<D>(preimage, problem.target.size);
  double candidates = 1.0;
  for (int a = 0; a < D; ++a) preimage.half[a] = kTapReach + preimage.margin[a];
  for (int a = 0; a < D; ++a) {
    preimage.extent[a] = preimage_extent<D>(preimage, preimage.half, a);
    candidates *= 2.0 * preimage.extent[a] + 1.0;
  }
  const bool clips = static_cast<Padding>(problem.padding) == Padding::border;
  preimage.always_few = preimage.invertible && !preimage.projective && !clips && candidates <= kFewCandidates;
}

// Finds the preimage of theta n for all to see. Every thread must call it.
STN_FUNCTION void find_preimage(const Descriptor& problem, int n) {
  __shared__ double entries[kMaxEntries];
  const int e = threadIdx.x;
  if (e < problem.entries) entries[e] = entry_of(problem, n, e);
  __syncthreads();
  if (e == 0) find_preimage(problem, entries, in_device_memory(problem.preimages)[n]);
  __syncthreads();
}

// Whether padding clips points to a pixel from afar, along axis a.
STN_FUNCTION bool clips_to_first(const Descriptor& problem, const Pixel& pixel, int a) {
  return static_cast<Padding>(problem.padding) == Padding::border && pixel.at[a] == 0;
}

STN_FUNCTION bool clips_to_last(const Descriptor& problem, const Pixel& pixel, int a) {
  return static_cast<Padding>(problem.padding) == Padding::border && pixel.at[a] == problem.source.size[a] - 1;
}

// Source coordinates from which a pixel is read, but for rounding.
STN_FUNCTION Box<D> box_of(const Descriptor& problem, const Pixel& pixel) {
  Box<D> box;
  for (int a = 0; a < D; ++a) {
    box.low[a] = clips_to_first(problem, pixel, a) ? -kFar : pixel.at[a] - (kTapReach + kMargin);
    box.high[a] = clips_to_last(problem, pixel, a) ? kFar : pixel.at[a] + (kTapReach + kMargin);
  }
  return box;
}

// A box of target pixels; all of them if nothing better is known.
struct Window {
  Range axis[kMaxAxes];

  STN_MEMBER explicit Window(const Descriptor& problem) {
    for (int a = 0; a < kMaxAxes; ++a) axis[a] = {0, problem.target.size[a]};
  }

  STN_MEMBER int rows() const { return axis[1].size() * axis[2].size(); }
  STN_MEMBER int64 pixels() const { return static_cast<int64>(rows()) * axis[0].size(); }
};

STN_FUNCTION Window window_of(const Descriptor& problem, const PixelPreimage& preimage, const Pixel& pixel) {
  Window window(problem);
  if (!preimage.finite) window.axis[0] = {0, 0};
  bool is_bounded = preimage.finite && preimage.invertible;
  for (int a = 0; a < D; ++a)
    is_bounded = is_bounded && !clips_to_first(problem, pixel, a) && !clips_to_last(problem, pixel, a);
  if (!is_bounded) return window;
  if (D == 2 && preimage.projective) {
    pull_back_projective<D>(preimage, pixel.at, preimage.half, problem.target.size, window.axis);
  } else {
    for (int a = 0; a < D; ++a)
      window.axis[a] = pull_back_affine<D>(preimage, pixel.at, preimage.extent[a], a, problem.target.size[a]);
  }
  return window;
}

// Columns of the target row (i, k) whose points lie in a box where W has the given sign.
STN_FUNCTION Range columns_of(const Descriptor& problem, const PixelPreimage& preimage, const Box<D>& box, int i, int k,
                              double sign) {
  Columns<D> columns = {-1.0, static_cast<double>(problem.target.size[0])};
  for_half_planes<D>(preimage, box, sign, preimage.slack, [&](const HalfPlane& one) { columns.cut(one, i, k); });
  if (D == 2 && preimage.projective)
    columns.cut(half_plane<D>(preimage, preimage.row[2], 0.0, sign, preimage.divisor_slack), i, k);
  return range_of(columns.low, columns.high, problem.target.size[0]);
}

}  // namespace stn
