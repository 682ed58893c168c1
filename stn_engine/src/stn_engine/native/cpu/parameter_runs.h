// The gradient of a transform's parameters, block by block: the derivative by coordinates, and at once the
// adjoint of the generator. No gradient of a grid is ever in memory.
#pragma once

#include "warp_runs.h"

namespace stn::STN_ISA {

template <class T, int D>
using Contrasts = CellContrast<T, D>[kBlocksTogether];

template <class S, class T, int D, bool Adjacent>
STN_LARGE_FUNCTION void contrast_planes(const Problem& problem, const Blocks<T, D>& blocks,
                                        Contrasts<T, D>& contrasts) {
  for (int64_t c = 0; c < problem.source.channels; ++c) {
    const T outside = static_cast<T>(problem.sampling.outside_of(c));
    for (int b = 0; b < blocks.count; ++b) {
      const Block& block = blocks.at[b];
      const S* channel = source_of<S>(problem, block.row.n) + c * problem.source.channel_stride;
      alignas(64) T grad[kBlock];
      load_grad<S>(problem.target, block, c, grad);
      prefetch(channel, blocks.plans[b], block.count);
      contrast_cells<S, T, D, Adjacent>(channel, blocks.plans[b], block.count, outside, grad, contrasts[b]);
    }
  }
}

// Sixteen running sums over channels, joined by a fixed tree.
template <class T>
STN_FUNCTION T sum_lanes(T (&lanes)[kLanes]) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <class S, class T>
STN_FUNCTION T dot_difference(const S* grad, const S* second, const S* first, int64_t channels) {
  T sums[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes)
    for (int l = 0; l < kLanes; ++l) sums[l] += widened(grad[c + l]) * (widened(second[c + l]) - widened(first[c + l]));
  for (int l = 0; c + l < channels; ++l)
    sums[l] += widened(grad[c + l]) * (widened(second[c + l]) - widened(first[c + l]));
  return sum_lanes(sums);
}

template <class S, class T, int D>
STN_FUNCTION void contrast_whole_pixel(const Corners<S, D>& corners, const S* grad, int64_t channels, int b,
                                       CellContrast<T, D>& contrast) {
  for (int a = 0; a < D; ++a)
    for (int corner = 0; corner < kPairs<D>; ++corner) {
      const Edge edge = edge_of(a, corner);
      contrast.along[a][corner][b] = dot_difference<S, T>(grad, corners.at[edge.second_pair][edge.second_side],
                                                          corners.at[edge.first_pair][edge.first_side], channels);
    }
}

template <class S, class T, int D>
STN_FUNCTION void contrast_edge_pixel(const Problem& problem, const Corners<S, D>& corners, const S* grad,
                                      const CellPlan<T, D>& plan, int b, CellContrast<T, D>& contrast) {
  for (int64_t c = 0; c < problem.source.channels; ++c) {
    const T outside = static_cast<T>(problem.sampling.outside_of(c)), g = widened(grad[c]);
    T pixel[kPairs<D>][2];
    for (int pair = 0; pair < kPairs<D>; ++pair)
      for (int side = 0; side < 2; ++side)
        pixel[pair][side] = plan.there[pair][side][b] ? static_cast<T>(widened(corners.at[pair][side][c])) : outside;
    for (int a = 0; a < D; ++a)
      for (int corner = 0; corner < kPairs<D>; ++corner) {
        const Edge edge = edge_of(a, corner);
        contrast.along[a][corner][b] +=
            g * (pixel[edge.second_pair][edge.second_side] - pixel[edge.first_pair][edge.first_side]);
      }
  }
}

template <class S, class T, int D>
STN_LARGE_FUNCTION void contrast_pixels(const Problem& problem, const Block& block, const CellPlan<T, D>& plan,
                                        CellContrast<T, D>& contrast) {
  const S* source = source_of<S>(problem, block.row.n);
  const S* grads = channel_of<const S>(problem.target, block.row, 0);
  for_pieces(problem.target, block, [&](int first, int count, int64_t offset) {
    const S* grad = grads + offset;
    for (int b = first; b < first + count; ++b, grad += problem.target.stride[0]) {
      if (plan.reads_of(b) != Reads::inside && !plan.live[b]) continue;
      const Corners<S, D> corners = corners_of(source, plan, b);
      if (is_whole(plan, b)) contrast_whole_pixel<S, T, D>(corners, grad, problem.source.channels, b, contrast);
      else contrast_edge_pixel(problem, corners, grad, plan, b, contrast);
    }
  });
}

template <class S, class T, int D, int K>
STN_FUNCTION void gradient_of_taps(const Problem& problem, const Block& block, Points<T, D>& points,
                                   ByCoordinate<T, D>& out) {
  TapPlan<T, D, K> plan;
  plan_taps(problem, block.count, points, plan);
  const S* source = source_of<S>(problem, block.row.n);
  for (int64_t c = 0; c < problem.source.channels; ++c) {
    T grad[kBlock];
    load_grad<S>(problem.target, block, c, grad);
    add_tap_gradient<S, T, D, K>(source + c * problem.source.channel_stride, plan, block.count,
                                 static_cast<T>(problem.sampling.outside_of(c)), grad, out);
  }
}

// G·∂V/∂(x, y, z) in pixels at the points of blocks, summed over channels; 0 in the lanes behind them. Where there are
// many channels some blocks are taken together, as in a warp.
template <class S, class T, int D>
class CoordinateGradients {
 public:
  STN_MEMBER CoordinateGradients(const Problem& problem, int64_t ahead)
      : problem_(problem),
        bicubic_(problem.sampling.interpolation == Interpolation::bicubic),
        by_taps_(bicubic_ || !has_small_offsets(problem.source)),
        most_(blocks_together(problem)) {
    for (int b = 0; b < most_; ++b) blocks_.plans[b].lie_over(problem.source, ahead);
  }

  // Moves the points of a block as padding does. Runs visit(block, points, gradient) over the blocks so far, in order,
  // if they are enough to be taken together; these points are the ones before the move, for a homography only.
  template <class Visit>
  STN_MEMBER void add(const Block& block, Points<T, D>& points, Visit visit) {
    const int b = blocks_.count++;
    blocks_.at[b] = block;
    if (problem_.generator.kind == Kind::homography) points_[b] = points;
    if (by_taps_) differentiate_taps(block, points, gradients_[b]);
    else plan(block, points, b);
    if (blocks_.count == most_) finish(visit);
  }

  // The same over whatever blocks are left.
  template <class Visit>
  STN_MEMBER void finish(Visit visit) {
    if (!by_taps_) differentiate_cells();
    for (int b = 0; b < blocks_.count; ++b) {
      const Block& block = blocks_.at[b];
      for (int a = 0; a < D; ++a)
        for (int lane = block.count; lane < whole_lanes(block.count); ++lane) gradients_[b].at[a][lane] = T(0);
      visit(block, points_[b], gradients_[b]);
    }
    blocks_.count = 0;
  }

 private:
  STN_MEMBER void plan(const Block& block, Points<T, D>& points, int b) {
    plan_cells(problem_.sampling, block.count, points, blocks_.plans[b]);
    for (int a = 0; a < D; ++a)
      for (int corner = 0; corner < kPairs<D>; ++corner)
        for (int lane = 0; lane < block.count; lane += kLanes) store(Lanes<T>{}, contrasts_[b].along[a][corner] + lane);
  }

  void differentiate_taps(const Block& block, Points<T, D>& points, ByCoordinate<T, D>& out) const {
    for (int a = 0; a < D; ++a)
      for (int lane = 0; lane < block.count; lane += kLanes) store(Lanes<T>{}, out.at[a] + lane);
    if (bicubic_) gradient_of_taps<S, T, D, 4>(problem_, block, points, out);
    else gradient_of_taps<S, T, D, 2>(problem_, block, points, out);
  }

  void differentiate_cells() {
    if (is_channels_last(problem_) && problem_.source.channels >= kLanes)
      for (int b = 0; b < blocks_.count; ++b)
        contrast_pixels<S, T, D>(problem_, blocks_.at[b], blocks_.plans[b], contrasts_[b]);
    else if (has_adjacent_pixels(problem_.source)) contrast_planes<S, T, D, true>(problem_, blocks_, contrasts_);
    else contrast_planes<S, T, D, false>(problem_, blocks_, contrasts_);
    for (int b = 0; b < blocks_.count; ++b)
      coordinate_gradient(blocks_.plans[b], blocks_.at[b].count, contrasts_[b], gradients_[b]);
  }

  const Problem& problem_;
  const bool bicubic_, by_taps_;
  const int most_;
  Blocks<T, D> blocks_;
  Points<T, D> points_[kBlocksTogether];
  Contrasts<T, D> contrasts_;
  ByCoordinate<T, D> gradients_[kBlocksTogether];
};

// Sums of g, j·g, i·g and k·g over target pixels, equations (6) and (7), in sixteen lanes that a fixed tree joins.
template <int D>
class RaySums {
 public:
  template <class T>
  STN_MEMBER void add(const T* g, const Block& block) {
    const Placer<double, D> places(block);
    RaySums sums = *this;  // stays in registers
    for (int b = 0; b < block.count; b += kLanes) {
      const Lanes<double> value = converted<double>(load(g + b));
      const Places<double, D> at = places(b);
      for (int a = 0; a < D; ++a) sums.sums_[a] += value * at.at[a];
      sums.sums_[D] += value;
    }
    *this = sums;
  }

  STN_MEMBER double total(int column) {
    double lanes[kLanes];
    store(sums_[column], lanes);
    return sum_lanes(lanes);
  }

 private:
  Lanes<double> sums_[D + 1] = {};
};

// Gradient of the rays (X, Y, W) of a homography: gx/W, gy/W and -(gx·x + gy·y)/W.
template <class T>
STN_FUNCTION void ray_gradient(const Points<T, 2>& points, const T* divisor, const ByCoordinate<T, 2>& g, int count,
                               double (&rays)[3][kBlock]) {
  for (int b = 0; b < whole_lanes(count); ++b) {
    const double x = points.at[0][b], y = points.at[1][b], w = divisor[b];
    const bool finite = b < count && is_finite(x) && is_finite(y);
    const double by_x = g.at[0][b] / w, by_y = g.at[1][b] / w;
    rays[0][b] = finite ? by_x : 0.0;
    rays[1][b] = finite ? by_y : 0.0;
    rays[2][b] = finite ? -(by_x * x + by_y * y) : 0.0;
  }
}

// Gradient of the pixel matrix from a run of one item.
template <class S, int D>
STN_LARGE_FUNCTION void matrix_run(const Problem& problem, int64_t n, Range run, double* out) {
  using T = Compute<S>;
  const bool projective = problem.generator.kind == Kind::homography;
  RaySums<D> sums[kMaxRows];
  const PointSource<T, D> source(problem, n);
  CoordinateGradients<S, T, D> gradients(problem, prefetch_distance<T, D>(problem, n));
  const auto add = [&](const Block& block, const Points<T, D>& points, const ByCoordinate<T, D>& g) {
    if (!projective) {
      for (int a = 0; a < D; ++a) sums[a].add(g.at[a], block);
    } else if constexpr (D == 2) {
      alignas(64) T divisor[kBlock];
      source.divisors(block, divisor);
      alignas(64) double by_ray[3][kBlock];
      ray_gradient<T>(points, divisor, g, block.count, by_ray);
      for (int a = 0; a < 3; ++a) sums[a].add(by_ray[a], block);
    }
  };
  for_blocks<T, D>(
      problem, n, run, [](const Row&, Range) {},
      [&](const PointSource<T, D>&, const Block& block, Points<T, D>& points) { gradients.add(block, points, add); });
  gradients.finish(add);
  for (int a = 0; a < (projective ? 3 : D); ++a)
    for (int b = 0; b <= D; ++b) out[a * (D + 1) + b] += sums[a].total(b);
}

// Gradient of a spline's source points: the transpose of its basis, times the unit change.
template <class S>
STN_LARGE_FUNCTION void spline_run(const Problem& problem, int64_t n, Range run, double* out) {
  using T = Compute<S>;
  const Generator& spline = problem.generator;
  const int64_t width = problem.target.size[0], pixels = width * problem.target.size[1];
  CoordinateGradients<S, T, 2> gradients(problem, 0);
  const auto add = [&](const Block& block, const Points<T, 2>&, const ByCoordinate<T, 2>& g) {
    const double* basis = spline.basis + block.row.i * width + block.j;
    for (int64_t k = 0; k < spline.count / 2; ++k)
      for (int a = 0; a < 2; ++a) {
        double sums[kLanes] = {};
        for (int b = 0; b < block.count; ++b) sums[b % kLanes] += g.at[a][b] * basis[k * pixels + b];
        const SourceAxis to = source_axis(spline.lattice.source[a], spline.lattice.unit);
        out[2 * k + a] += sum_lanes(sums) * ratio(to.u, to.w);
      }
  };
  for_blocks<T, 2>(
      problem, n, run, [](const Row&, Range) {},
      [&](const PointSource<T, 2>&, const Block& block, Points<T, 2>& points) { gradients.add(block, points, add); });
  gradients.finish(add);
}

template <class P, int D>
STN_FUNCTION void store_field(const PointField& field, const Block& block, const double (&sums)[D][kBlock]) {
  alignas(64) P numbers[D][kBlock];
  for (int a = 0; a < D; ++a)
    for (int b = 0; b < whole_lanes(block.count); ++b) numbers[a][b] = static_cast<P>(sums[a][b]);
  for_numbers<P, D>(field, block, [&](int a, int b, P& number) { number = numbers[a][b]; });
}

// Gradient of a grid or a flow in a run of its item n_field: the sum over all items that share it.
template <class S, int D>
void field_run(const Problem& problem, int64_t n_field, int64_t first, int64_t last) {
  using T = Compute<S>;
  const bool broadcast = problem.grad_field.batch == 1;
  const int64_t n_last = broadcast ? problem.batch - 1 : n_field;
  T slope[D];
  for (int a = 0; a < D; ++a) {
    const SourceAxis to = source_axis(problem.source.size[a], problem.sampling.unit);
    slope[a] = static_cast<T>(ratio(to.u, to.w));
  }
  alignas(64) double sums[D][kBlock] = {};
  const PointSource<T, D> source(problem, n_field);
  CoordinateGradients<S, T, D> gradients(problem, prefetch_distance<T, D>(problem, n_field));
  const auto add = [&](const Block& block, const Points<T, D>&, const ByCoordinate<T, D>& g) {
    for (int a = 0; a < D; ++a)
      for (int b = 0; b < block.count; b += kLanes) {
        const Lanes<T> by_pixel = load(g.at[a] + b), zero{};
        const Lanes<T> by_number = choose(by_pixel == zero, zero, by_pixel * slope[a]);
        store(load(sums[a] + b) + converted<double>(by_number), sums[a] + b);
      }
    if (block.row.n < n_last) return;
    problem.grad_field.wide ? store_field<double>(problem.grad_field, block, sums)
                            : store_field<float>(problem.grad_field, block, sums);
    std::memset(sums, 0, sizeof sums);
  };
  for_blocks_of_run(problem, n_field, Range{first, last}, [&](const Block& block) {
    Block one = block;
    for (one.row.n = broadcast ? 0 : n_field; one.row.n <= n_last; ++one.row.n) {
      Points<T, D> points;
      source.fill(one, points);
      gradients.add(one, points, add);
    }
  });
  gradients.finish(add);
}

// Adds the part of a run of item n to sums of generator.count numbers, or of the entries of its matrix.
template <class S, int D>
void parameter_run(const Problem& problem, int64_t n, int64_t first, int64_t last, double* sums) {
  if (problem.generator.is_linear()) return matrix_run<S, D>(problem, n, Range{first, last}, sums);
  if constexpr (D == 2) spline_run<S>(problem, n, Range{first, last}, sums);
}

}  // namespace stn::STN_ISA
