// Source points of a block of target pixels in one row, and the adjoint: the grid generator, of which no
// grid is ever in memory.
#pragma once

#include "lanes.h"

namespace stn::STN_ISA {

// Target pixels that are worked on together: a piece of a row.
constexpr int kBlock = 64;
struct Row {
  int64_t n;     // item of the batch
  int64_t i, k;  // y and z of the target pixels
};

STN_FUNCTION Row row_of(const Item& item, int64_t n, int64_t row) {
  return {n, row % item.target.size[1], row / item.target.size[1]};
}

// Coordinates in pixels, x, y and z; lanes beyond the last pixel repeat it.
template <class T, int D>
struct Points {
  alignas(64) T at[D][kBlock];
};

STN_FUNCTION int whole_lanes(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

template <class T>
STN_FUNCTION void repeat_last(T* lanes, int count) {
  for (int b = count; b < whole_lanes(count); ++b) lanes[b] = lanes[count - 1];
}

// Index of an item in an operand that may be broadcast.
STN_FUNCTION int64_t item_of(int64_t n, int64_t batch) { return batch == 1 ? 0 : n; }

// Matrix times (j, i, k, 1) along a row: one product per pixel, never a running sum.
template <class T, int D>
struct LinearRow {
  T constant[kMaxRows], step[kMaxRows];

  STN_MEMBER LinearRow(const Matrix& m, int rows, const Row& row) {
    for (int a = 0; a < rows; ++a) {
      step[a] = static_cast<T>(m.at[a][0]);
      constant[a] = static_cast<T>(m.at[a][1]) * static_cast<T>(row.i) + static_cast<T>(m.at[a][D]);
      if constexpr (D == 3) constant[a] += static_cast<T>(m.at[a][2]) * static_cast<T>(row.k);
    }
  }

  STN_MEMBER T at(int a, int64_t j) const { return constant[a] + step[a] * static_cast<T>(j); }

  STN_MEMBER void fill(int a, int64_t j, int count, T* out) const {
    const int32_t first = static_cast<int32_t>(j), last = first + count - 1;
    for (int b = 0; b < count; b += kLanes) {
      const Lanes<int32_t> place = at_most(counting<int32_t>() + (first + b), last);
      store(constant[a] + step[a] * converted<T>(place), out + b);
    }
  }
};

template <class P>
STN_FUNCTION const P* field_row(const PointField& field, const Row& row, int64_t j) {
  return static_cast<const P*>(field.data) + item_of(row.n, field.batch) * field.batch_stride +
         row.i * field.stride[1] + row.k * field.stride[2] + j * field.stride[0];
}

// PyTorch's own order of operations, so that ties of nearest fall on the same side.
template <class T, class P, int D>
STN_LARGE_FUNCTION void grid_points(const Item& item, const Row& row, int64_t j, int count, Points<T, D>& points) {
  using Wide = std::conditional_t<std::is_same_v<P, double>, double, T>;
  const PointField& field = item.generator.field;
  const P* from = field_row<P>(field, row, j);
  for (int a = 0; a < D; ++a) {
    const Wide size = static_cast<Wide>(item.source.size[a]);
    const P* component = from + a * field.component_stride;
    for (int b = 0; b < count; ++b) {
      const Wide x = component[b * field.stride[0]];
      Wide pixel = x;
      if (item.sampling.unit == Unit::normalized) pixel = ((x + 1) * size - 1) / 2;
      if (item.sampling.unit == Unit::normalized_corners) pixel = (x + 1) / 2 * (size - 1);
      points.at[a][b] = static_cast<T>(pixel);
    }
  }
}

// Target point plus displacement in float64, rounded once.
template <class T, class P, int D>
STN_LARGE_FUNCTION void flow_points(const Item& item, const Row& row, int64_t j, int count, Points<T, D>& points) {
  const PointField& field = item.generator.field;
  const Lattice& lattice = item.generator.lattice;
  const P* from = field_row<P>(field, row, j);
  const int64_t pixel[kMaxAxes] = {j, row.i, row.k};
  for (int a = 0; a < D; ++a) {
    const TargetAxis target = target_axis(lattice.target[a], lattice.unit);
    const SourceAxis source = source_axis(lattice.source[a], lattice.unit);
    const double slope = static_cast<double>(source.u * target.p);
    const double offset = static_cast<double>(source.u * target.q + source.v * target.r);
    const double divisor = static_cast<double>(source.w * target.r), scale = ratio(source.u, source.w);
    const P* component = from + a * field.component_stride;
    for (int b = 0; b < count; ++b) {
      const double place = static_cast<double>(pixel[a] + (a == 0 ? b : 0));
      const double identity = (place * slope + offset) / divisor;
      points.at[a][b] = static_cast<T>(identity + static_cast<double>(component[b * field.stride[0]]) * scale);
    }
  }
}

// The spline's basis times the source points of its control points, in float64, rounded once.
template <class T>
STN_LARGE_FUNCTION void spline_points(const Item& item, const Row& row, int64_t j, int count, Points<T, 2>& points) {
  const Generator& spline = item.generator;
  const double* parameters = spline.parameters + item_of(row.n, spline.batch) * spline.count;
  const int64_t width = item.target.size[0], pixels = width * item.target.size[1];
  const double* basis = spline.basis + row.i * width + j;
  for (int a = 0; a < 2; ++a) {
    double sum[kBlock] = {};
    for (int64_t k = 0; k < spline.count / 2; ++k)
      for (int b = 0; b < count; ++b) sum[b] += parameters[2 * k + a] * basis[k * pixels + b];
    const SourceAxis to = source_axis(spline.lattice.source[a], spline.lattice.unit);
    for (int b = 0; b < count; ++b) points.at[a][b] = static_cast<T>(sum[b] * ratio(to.u, to.w) + ratio(to.v, to.w));
  }
}

// The generator of one item of a batch, ready to run along rows.
template <class T, int D>
class PointSource {
 public:
  STN_MEMBER PointSource(const Item& item, int64_t n) : item_(item), matrix_() {
    const Generator& generator = item.generator;
    if (generator.is_linear())
      matrix_ = pixel_matrix(generator.kind, generator.lattice,
                             generator.parameters + item_of(n, generator.batch) * generator.count);
  }

  const Matrix& matrix() const { return matrix_; }

  void fill(const Row& row, int64_t j, int count, Points<T, D>& points) const {
    switch (item_.generator.kind) {
      case Kind::grid:
        item_.generator.field.wide ? grid_points<T, double, D>(item_, row, j, count, points)
                                   : grid_points<T, float, D>(item_, row, j, count, points);
        break;
      case Kind::flow:
        item_.generator.field.wide ? flow_points<T, double, D>(item_, row, j, count, points)
                                   : flow_points<T, float, D>(item_, row, j, count, points);
        break;
      case Kind::spline:
        if constexpr (D == 2) spline_points<T>(item_, row, j, count, points);
        break;
      case Kind::homography: return project(row, j, count, points);
      default: return transform(row, j, count, points);
    }
    for (int a = 0; a < D; ++a) repeat_last(points.at[a], count);
  }

  // W of a homography along a piece of a row.
  void divisors(const Row& row, int64_t j, int count, T* out) const {
    LinearRow<T, D>(matrix_, 3, row).fill(2, j, count, out);
  }

 private:
  void transform(const Row& row, int64_t j, int count, Points<T, D>& points) const {
    const LinearRow<T, D> line(matrix_, D, row);
    for (int a = 0; a < D; ++a) line.fill(a, j, count, points.at[a]);
  }

  void project(const Row& row, int64_t j, int count, Points<T, D>& points) const {
    alignas(64) T divisor[kBlock];
    divisors(row, j, count, divisor);
    const LinearRow<T, D> line(matrix_, 3, row);
    for (int a = 0; a < D; ++a) {
      line.fill(a, j, count, points.at[a]);
      for (int b = 0; b < whole_lanes(count); ++b) points.at[a][b] /= divisor[b];
    }
  }

  const Item& item_;
  Matrix matrix_;
};

}  // namespace stn::STN_ISA
