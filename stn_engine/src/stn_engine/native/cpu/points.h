// Source points of a block of target pixels, and the adjoint: the grid generator, of which no grid is ever in memory.
#pragma once

#include "blocks.h"

namespace stn::STN_ISA {

// Coordinates in pixels, x, y and z; lanes beyond the last pixel repeat it.
template <class T, int D>
struct Points {
  alignas(64) T at[D][kBlock];
};

STN_FUNCTION int whole_lanes(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

// G of channel c at the points of a block, 0 in the lanes behind them.
template <class S>
STN_FUNCTION void load_grad(const Map& target, const Block& block, int64_t c, Compute<S>* out) {
  const S* channel = channel_of<const S>(target, block.row, c);
  const int64_t stride = target.stride[0];
  for_pieces(target, block, [&](int first, int count, int64_t offset) {
    const S* grad = channel + offset;
    if (stride == 1)
      for (int b = 0; b < count; ++b) out[first + b] = widened(grad[b]);
    else
      for (int b = 0; b < count; ++b) out[first + b] = widened(grad[b * stride]);
  });
  for (int b = block.count; b < whole_lanes(block.count); ++b) out[b] = 0;
}

template <class T>
STN_FUNCTION void repeat_last(T* lanes, int count) {
  for (int b = count; b < whole_lanes(count); ++b) lanes[b] = lanes[count - 1];
}

// Index of an item in an operand that may be broadcast.
STN_FUNCTION int64_t item_of(int64_t n, int64_t batch) { return batch == 1 ? 0 : n; }

// One row of the matrix times (j, i, k, 1): a product per pixel, never a running sum.
template <class T, int D>
STN_FUNCTION Lanes<T> transformed(const T (&row)[kMaxAxes + 1], const Places<T, D>& places) {
  Lanes<T> constant = row[1] * places.at[1] + row[D];
  if constexpr (D == 3) constant += row[2] * places.at[2];
  return constant + row[0] * places.at[0];
}

// One component of the points of an item.
template <class P>
STN_FUNCTION P* component_of(const PointField& field, int64_t n, int a) {
  return static_cast<P*>(field.data) + item_of(n, field.batch) * field.batch_stride + a * field.component_stride;
}

// Runs visit(component, b, number) over the numbers of a field at the points of a block, which lie side by side as a
// rule.
template <class P, int D, class Visit>
STN_FUNCTION void for_numbers(const PointField& field, const Block& block, Visit visit) {
  P* numbers = component_of<P>(field, block.row.n, 0);
  const bool side_by_side = field.component_stride == 1 && field.stride[0] == D;
  for_pieces(field, block, [&](int first, int count, int64_t offset) {
    P* at = numbers + offset;
    if (side_by_side) {
      for (int b = 0; b < count; ++b)
        for (int a = 0; a < D; ++a) visit(a, first + b, at[b * D + a]);
    } else {
      for (int a = 0; a < D; ++a)
        for (int b = 0; b < count; ++b) visit(a, first + b, at[a * field.component_stride + b * field.stride[0]]);
    }
  });
}

// The numbers of a field at the points of a block, component by component.
template <class P, int D>
STN_FUNCTION void load_numbers(const PointField& field, const Block& block, P (&out)[D][kBlock]) {
  for_numbers<const P, D>(field, block, [&](int a, int b, P number) { out[a][b] = number; });
  for (int a = 0; a < D; ++a) repeat_last(out[a], block.count);
}

template <class T, class P, int D>
STN_LARGE_FUNCTION void grid_points(const Problem& problem, const Block& block, Points<T, D>& points) {
  using Wide = std::conditional_t<std::is_same_v<P, double>, double, T>;
  const PointField& field = problem.generator.field;
  alignas(64) P numbers[D][kBlock];
  load_numbers<P, D>(field, block, numbers);
  for (int a = 0; a < D; ++a) {
    const Wide size = static_cast<Wide>(problem.source.size[a]);
    for (int b = 0; b < whole_lanes(block.count); ++b)
      points.at[a][b] = static_cast<T>(in_pixels(static_cast<Wide>(numbers[a][b]), size, problem.sampling.unit));
  }
}

// Target point plus displacement in float64, rounded once.
template <class T, class P, int D>
STN_LARGE_FUNCTION void flow_points(const Problem& problem, const Block& block, Points<T, D>& points) {
  const PointField& field = problem.generator.field;
  const Lattice& lattice = problem.generator.lattice;
  const Placer<double, D> places(block);
  alignas(64) P numbers[D][kBlock];
  load_numbers<P, D>(field, block, numbers);
  for (int a = 0; a < D; ++a) {
    const TargetAxis target = target_axis(lattice.target[a], lattice.unit);
    const SourceAxis source = source_axis(lattice.source[a], lattice.unit);
    const double slope = static_cast<double>(source.u * target.p);
    const double offset = static_cast<double>(source.u * target.q + source.v * target.r);
    const double divisor = static_cast<double>(source.w * target.r), scale = ratio(source.u, source.w);
    const bool differs = a == 0 || block.width > 0;  // from pixel to pixel
    Lanes<double> identity;
    for (int b = 0; b < block.count; b += kLanes) {
      if (b == 0 || differs) identity = (places(b).at[a] * slope + offset) / divisor;
      store(converted<T>(identity + converted<double>(load(numbers[a] + b)) * scale), points.at[a] + b);
    }
  }
}

// The spline's basis times the source points of its control points, in float64, rounded once.
template <class T>
STN_LARGE_FUNCTION void spline_points(const Problem& problem, const Block& block, Points<T, 2>& points) {
  const Generator& spline = problem.generator;
  const double* parameters = spline.parameters + item_of(block.row.n, spline.batch) * spline.count;
  const int64_t width = problem.target.size[0], pixels = width * problem.target.size[1];
  const double* basis = spline.basis + block.row.i * width + block.j;
  for (int a = 0; a < 2; ++a) {
    double sum[kBlock] = {};
    for (int64_t k = 0; k < spline.count / 2; ++k)
      for (int b = 0; b < block.count; ++b) sum[b] += parameters[2 * k + a] * basis[k * pixels + b];
    const SourceAxis to = source_axis(spline.lattice.source[a], spline.lattice.unit);
    for (int b = 0; b < block.count; ++b)
      points.at[a][b] = static_cast<T>(sum[b] * ratio(to.u, to.w) + ratio(to.v, to.w));
  }
}

// The generator of one item of a batch, ready for any block.
template <class T, int D>
class PointSource {
 public:
  STN_MEMBER PointSource(const Problem& problem, int64_t n) : problem_(problem), matrix_() {
    const Generator& generator = problem.generator;
    if (generator.is_linear())
      matrix_ = pixel_matrix(generator.kind, generator.lattice,
                             generator.parameters + item_of(n, generator.batch) * generator.count);
    for (int a = 0; a < kMaxRows; ++a)
      for (int b = 0; b <= kMaxAxes; ++b) rounded_[a][b] = static_cast<T>(matrix_.at[a][b]);
  }

  const Matrix& matrix() const { return matrix_; }

  void fill(const Block& block, Points<T, D>& points) const {
    const bool wide = problem_.generator.field.wide;
    switch (problem_.generator.kind) {
      case Kind::homography: return project(block, points);
      case Kind::grid:
        wide ? grid_points<T, double, D>(problem_, block, points) : grid_points<T, float, D>(problem_, block, points);
        break;
      case Kind::flow:
        wide ? flow_points<T, double, D>(problem_, block, points) : flow_points<T, float, D>(problem_, block, points);
        break;
      case Kind::spline:
        if constexpr (D == 2) spline_points<T>(problem_, block, points);
        break;
      default: return transform(block, points);
    }
    for (int a = 0; a < D; ++a) repeat_last(points.at[a], block.count);
  }

  // W of a homography at the pixels of a block.
  void divisors(const Block& block, T* out) const {
    const Placer<T, D> places(block);
    for (int b = 0; b < block.count; b += kLanes) store(transformed(rounded_[2], places(b)), out + b);
  }

 private:
  void transform(const Block& block, Points<T, D>& points) const {
    const Placer<T, D> places(block);
    for (int b = 0; b < block.count; b += kLanes)
      for (int a = 0; a < D; ++a) store(transformed(rounded_[a], places(b)), points.at[a] + b);
  }

  void project(const Block& block, Points<T, D>& points) const {
    const Placer<T, D> places(block);
    for (int b = 0; b < block.count; b += kLanes) {
      const Lanes<T> divisor = transformed(rounded_[2], places(b));
      for (int a = 0; a < D; ++a) store(transformed(rounded_[a], places(b)) / divisor, points.at[a] + b);
    }
  }

  const Problem& problem_;
  Matrix matrix_;
  T rounded_[kMaxRows][kMaxAxes + 1];
};

}  // namespace stn::STN_ISA
