// One problem as the kernels see it: plain data, filled in by the module, shared by all instruction sets.
//
// Axes are in the order x, y, z; strides are in elements and may be anything, 0 and negative included.
#pragma once

#include <cstdint>

#include "../shared/transforms.h"
#include "tuning.h"

namespace stn {

// A batch of maps with channels: U, V or G.
struct Map {
  void* data;
  int64_t batch, channels;
  int64_t size[kMaxAxes];
  int64_t batch_stride, channel_stride;
  int64_t stride[kMaxAxes];
  bool even;  // pixels that follow one another in raster order are stride[0] apart
};

// One point per target pixel: a grid, a flow, or their gradient.
struct PointField {
  void* data;
  bool wide;  // float64, else float32
  int64_t batch;
  int64_t batch_stride, component_stride;
  int64_t stride[kMaxAxes];
  bool even;  // as of a map
};

struct Sampling {
  Interpolation interpolation;
  Padding padding;
  Unit unit;
  bool zero_subgradient;  // at integer coordinates, instead of that of the cell to the right
  const double* fill;
  const int64_t* labels;  // fill for maps of INT64, of which doubles have not all; null: doubles do
  int64_t fill_count;     // 1, or one per channel

  STN_MEMBER int64_t fill_index(int64_t channel) const { return fill_count == 1 ? 0 : channel; }
  STN_MEMBER double fill_of(int64_t channel) const { return fill[fill_index(channel)]; }
  STN_MEMBER double outside_of(int64_t channel) const { return padding == Padding::fill ? fill_of(channel) : 0.0; }
};

// Where target pixels read from.
struct Generator {
  Kind kind;
  Lattice lattice;
  int64_t batch;
  const double* parameters;  // (batch, count), but for flow and grid
  int64_t count;
  PointField field;     // flow and grid only
  const double* basis;  // spline only: (count / 2, target pixels)

  STN_MEMBER bool is_linear() const { return family_of(kind) == Family::matrix; }
  STN_MEMBER bool is_pointwise() const { return family_of(kind) == Family::field; }
};

struct Problem {
  int axes;
  Storage storage;
  int64_t batch;  // after broadcasting
  Sampling sampling;
  Generator generator;
  Map source;               // U
  Map target;               // V, or G
  Map grad_feature_map;     // gradient of U; no data if not asked for
  double* grad_parameters;  // (batch of the generator, count), or null
  PointField grad_field;    // flow and grid only; no data if not asked for

  // Target pixels.
  STN_MEMBER int64_t pixels() const { return target.size[0] * target.size[1] * target.size[2]; }
};

// How the target's pixels, in raster order, are cut into units of work: whole rows where these are short. Depends on
// sizes alone: partial sums must not depend on threads.
STN_FUNCTION int64_t pixels_per_chunk(const Problem& problem) {
  const int64_t width = problem.target.size[0];
  return width < 1 || width > kChunk ? kChunk : kChunk / width * width;
}

STN_FUNCTION int64_t chunks(const Problem& problem) {
  const int64_t step = pixels_per_chunk(problem);
  return (problem.pixels() + step - 1) / step;
}

}  // namespace stn
