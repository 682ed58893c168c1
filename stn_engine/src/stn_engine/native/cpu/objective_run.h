// Objectives, block by block: points, V and its slopes, what they differ from the fixed map, and the adjoint of the
// generator. Neither V nor its gradient is ever in memory.
#pragma once

#include "objective.h"
#include "parameter_runs.h"

namespace stn::STN_ISA {

// One channel at the points of a block: V, and its slopes by the coordinates in pixels.
template <class T, int D>
struct Samples {
  alignas(64) T value[kBlock];
  alignas(64) T slope[D][kBlock];
};

// Equations (1) to (3) of cells.
template <class S, class T, int D, bool Adjacent>
STN_LARGE_FUNCTION void sample_cells(const S* channel, const CellPlan<T, D>& plan, int count,
                                     const Constants<T>& constants, bool slopes, Samples<T, D>& out) {
  prefetch(channel, plan, count);
  for (int b = 0; b < whole_lanes(count); b += kLanes) {
    const bool inside = plan.reads_of(b) == Reads::inside;
    const CellPixels<T, D> cells = load_cells<S, T, D, Adjacent>(channel, plan, b, constants.outside);
    Lanes<T> value = blend_cells(plan, b, cells);
    if (!inside) value = with_constants(plan.live + b, plan.finite + b, constants, value);
    store(value, out.value + b);
    for (int a = 0; slopes && a < D; ++a) {
      const auto difference = [&](int corner) {
        const Edge edge = edge_of(a, corner);
        return cells.at[edge.second_pair][edge.second_side] - cells.at[edge.first_pair][edge.first_side];
      };
      const int low = a == 0 ? 1 : 0, high = a == 2 ? 1 : 2;
      Lanes<T> sum = blend(plan, low, b, difference(0), difference(1));
      if constexpr (D == 3) sum = blend(plan, high, b, sum, blend(plan, low, b, difference(2), difference(3)));
      if (!inside) {
        const Lanes<T> slope = choose(load(plan.live + b), load(plan.slope[a] + b), Lanes<T>{});
        sum = choose(slope == Lanes<T>{}, Lanes<T>{}, slope * sum);
      }
      store(sum, out.slope[a] + b);
    }
  }
}

// The same of any taps.
template <class S, class T, int D, int K>
STN_LARGE_FUNCTION void sample_taps(const S* channel, const TapPlan<T, D, K>& plan, int count,
                                    const Constants<T>& constants, bool slopes, Samples<T, D>& out) {
  read_taps<S, T, D, K>(channel, plan, count, constants, out.value);
  if (!slopes) return;
  alignas(64) T one[kBlock];
  ByCoordinate<T, D> sums{};
  for (int b = 0; b < kBlock; ++b) one[b] = T(1);
  add_tap_gradient<S, T, D, K>(channel, plan, count, constants.outside, one, sums);
  for (int a = 0; a < D; ++a)
    for (int b = 0; b < kBlock; b += kLanes) store(load(sums.at[a] + b), out.slope[a] + b);
}

// The weights of a block's points, 0 in the lanes behind them.
template <class S, class T, int D>
STN_FUNCTION void weights_of(const Objective& objective, const Block& block, const Points<T, D>& points, T* out) {
  if (objective.weights.data != nullptr) load_grad<S>(objective.weights, block, 0, out);
  for (int b = 0; b < block.count; b += kLanes) {
    Lanes<Mask<T>> counted = counting<Mask<T>>() + static_cast<Mask<T>>(b) < Lanes<Mask<T>>::all(block.count);
    if (objective.domain == Domain::overlap)
      for (int a = 0; a < D; ++a) {
        const Lanes<T> x = load(points.at[a] + b);
        const T last = static_cast<T>(objective.problem.source.size[a] - 1);
        counted &= (x >= Lanes<T>{}) & (x <= Lanes<T>::all(last));
      }
    const Lanes<T> w = objective.weights.data == nullptr ? Lanes<T>::all(1) : load(out + b);
    store(masked(counted, w), out + b);
  }
}

// Running sums of products of the lattice coordinates with symmetric matrices R x R: for each entry of these the sums
// of q, q·j, q·i, q·k and of the products of two of them.
template <int D, int R>
class CurvatureSums {
 public:
  STN_MEMBER void add(const double (&entries)[R * (R + 1) / 2][kBlock], const Block& block) {
    const Placer<double, D> places(block);
    for (int b = 0; b < block.count; b += kLanes) {
      const Places<double, D> at = places(b);
      int place = 0;
      for (const auto& entry : entries) {
        const Lanes<double> q = load(entry + b);
        for (int c = 0; c <= D; ++c) {
          const Lanes<double> product = c < D ? q * at.at[c] : q;
          for (int d = c; d <= D; ++d) sums_[place++] += d < D ? product * at.at[d] : product;
        }
      }
    }
  }

  STN_MEMBER void add_to(double* out) const {
    for (const Lanes<double>& sum : sums_) {
      double lanes[kLanes];
      store(sum, lanes);
      *out++ += sum_lanes(lanes);
    }
  }

 private:
  Lanes<double> sums_[R * (R + 1) / 2 * ((D + 1) * (D + 2) / 2)] = {};
};

template <class S, int D>
class ObjectiveRunner {
 public:
  using T = Compute<S>;
  static constexpr int kEntries = D * (D + 1) / 2;

  ObjectiveRunner(const Objective& objective, const Pass& pass, double* sums)
      : objective_(objective), problem_(objective.problem), pass_(pass), layout_(objective), out_(sums) {}

  STN_MEMBER void run(int64_t n, Range run) {
    const int64_t ahead = prefetch_distance<T, D>(problem_, n);
    plan_.lie_over(problem_.source, ahead);
    const auto visit = [&](const PointSource<T, D>& source, const Block& block, Points<T, D>& points) {
      add(source, block, points);
    };
    // What reads nothing is outside of the overlap; gradients of fields are written everywhere.
    if (objective_.domain == Domain::overlap && !pass_.field) {
      for_blocks<T, D>(problem_, n, run, [](const Row&, Range) {}, visit);
    } else {
      const PointSource<T, D> source(problem_, n);
      for_blocks_of_run(problem_, n, run, [&](const Block& block) {
        Points<T, D> points;
        source.fill(block, points);
        visit(source, block, points);
      });
    }
    finish();
  }

 private:
  // All channels of a block.
  __attribute__((noinline)) void add(const PointSource<T, D>& source, const Block& block, Points<T, D>& points) {
    weights_of<S, T, D>(objective_, block, points, weights_);
    Lanes<Mask<T>> counted{};
    for (int b = 0; b < block.count; b += kLanes) {
      const Lanes<T> w = load(weights_ + b);
      counted |= w != Lanes<T>{};
      if (pass_.moments) moments_[kWeight] += converted<double>(w);
    }
    const bool is_needed = any_of(counted);
    if (!is_needed && !pass_.field) return;
    for (int a = 0; a < D; ++a) clear(by_coordinate_[a], block.count);
    if (pass_.curvature)
      for (auto& entry : curvature_) clear(entry, block.count);
    const Points<T, D> read = points;
    if (is_needed) add_channels(block, points);
    if (pass_.sums || pass_.curvature) add_parameters(source, block, read);
    if (pass_.field) store_gradient(block);
  }

  STN_MEMBER static void clear(double* lanes, int count) {
    for (int b = 0; b < count; b += kLanes) store(Lanes<double>{}, lanes + b);
  }

  STN_MEMBER void add_channels(const Block& block, Points<T, D>& points) {
    switch (problem_.sampling.interpolation) {
      case Interpolation::nearest: return add_taps<1>(block, points);
      case Interpolation::bicubic: return add_taps<4>(block, points);
      case Interpolation::bilinear:
        if (!has_small_offsets(problem_.source)) return add_taps<2>(block, points);
    }
    plan_cells(problem_.sampling, block.count, points, plan_);
    const bool adjacent = has_adjacent_pixels(problem_.source);
    add_each_channel(block, [&](const S* channel, const Constants<T>& constants) {
      if (adjacent) sample_cells<S, T, D, true>(channel, plan_, block.count, constants, has_slopes(), samples_);
      else sample_cells<S, T, D, false>(channel, plan_, block.count, constants, has_slopes(), samples_);
    });
  }

  template <int K>
  __attribute__((noinline)) void add_taps(const Block& block, Points<T, D>& points) {
    TapPlan<T, D, K> plan;
    plan_taps(problem_, block.count, points, plan);
    add_each_channel(block, [&](const S* channel, const Constants<T>& constants) {
      sample_taps<S, T, D, K>(channel, plan, block.count, constants, has_slopes(), samples_);
    });
  }

  STN_MEMBER bool has_slopes() const { return pass_.sums || pass_.curvature || pass_.field; }

  template <class Sample>
  STN_MEMBER void add_each_channel(const Block& block, Sample sample) {
    const S* source = source_of<S>(problem_, block.row.n);
    for (int64_t c = 0; c < problem_.source.channels; ++c) {
      sample(source + c * problem_.source.channel_stride, constants_of<T>(problem_.sampling, c));
      load_grad<S>(objective_.fixed, block, c, fixed_);
      switch (objective_.loss) {
        case Loss::ssd: add_channel<Loss::ssd>(block.count); break;
        case Loss::huber: add_channel<Loss::huber>(block.count); break;
        case Loss::ncc: add_channel<Loss::ncc>(block.count); break;
      }
    }
  }

  // What one channel contributes. Where nothing is counted nothing is used, whatever it is: 0 times NaN would be NaN.
  template <Loss kind>
  __attribute__((noinline)) void add_channel(int count) {
    for (int b = 0; b < count; b += kLanes) {
      const Lanes<T> w = load(weights_ + b);
      const Lanes<Mask<T>> counted = w != Lanes<T>{};
      const Lanes<T> V = masked(counted, load(samples_.value + b)), F = masked(counted, load(fixed_ + b));
      if (pass_.moments) add_moments<kind>(w, V, F);
      if (!has_slopes()) continue;
      const Lanes<T> G = gradient<kind>(w, V, F), curvature = curved<kind>(w, V - F);
      Lanes<T> slope[D];
      for (int a = 0; a < D; ++a) {
        slope[a] = masked(counted, load(samples_.slope[a] + b));
        store(load(by_coordinate_[a] + b) + converted<double>(G * slope[a]), by_coordinate_[a] + b);
      }
      if (!pass_.curvature) continue;
      for (int a = 0, entry = 0; a < D; ++a)
        for (int c = a; c < D; ++c, ++entry)
          store(load(curvature_[entry] + b) + converted<double>(curvature * slope[a] * slope[c]),
                curvature_[entry] + b);
    }
  }

  template <Loss kind>
  STN_MEMBER void add_moments(const Lanes<T>& w, const Lanes<T>& V, const Lanes<T>& F) {
    const Lanes<double> weight = converted<double>(w);
    if constexpr (kind == Loss::ncc) {
      const Lanes<double> moving = converted<double>(V), fixed = converted<double>(F);
      const Lanes<double> of_moving = weight * moving, of_fixed = weight * fixed;
      moments_[kMoving] += of_moving;
      moments_[kFixed] += of_fixed;
      moments_[kMovingMoving] += of_moving * moving;
      moments_[kFixedFixed] += of_fixed * fixed;
      moments_[kMovingFixed] += of_moving * fixed;
    } else {
      const Lanes<double> e = converted<double>(V - F);
      if constexpr (kind == Loss::ssd) {
        moments_[kLoss] += weight * e * e;
      } else {
        const Lanes<double> size = magnitude(e), delta = Lanes<double>::all(objective_.delta);
        const Lanes<double> line = delta * (size - objective_.delta / 2);
        moments_[kLoss] += weight * choose(size > delta, line, e * e / 2.0);
      }
    }
  }

  // The gradient by V, but for a factor that an item has.
  template <Loss kind>
  STN_MEMBER Lanes<T> gradient(const Lanes<T>& w, const Lanes<T>& V, const Lanes<T>& F) const {
    if constexpr (kind == Loss::ssd) return w * (V - F);
    if constexpr (kind == Loss::huber) {
      const T delta = static_cast<T>(objective_.delta);
      return w * clamp_to(V - F, -delta, delta);
    }
    const Lanes<T> a = V - static_cast<T>(pass_.moving_mean), b = F - static_cast<T>(pass_.fixed_mean);
    return w * (static_cast<T>(pass_.ratio) * a - b);
  }

  template <Loss kind>
  STN_MEMBER Lanes<T> curved(const Lanes<T>& w, const Lanes<T>& e) const {
    if constexpr (kind != Loss::huber) return w;
    return choose(magnitude(e) > Lanes<T>::all(static_cast<T>(objective_.delta)), Lanes<T>{}, w);
  }

  // From the sums over channels at every point to those of the parameters.
  STN_MEMBER void add_parameters(const PointSource<T, D>& source, const Block& block, const Points<T, D>& points) {
    if (!problem_.generator.is_linear()) {
      if constexpr (D == 2) add_spline(block);
    } else if (problem_.generator.kind != Kind::homography) {
      if (pass_.sums)
        for (int a = 0; a < D; ++a) rays_[a].add(by_coordinate_[a], block);
      if (pass_.curvature) of_matrix_.add(curvature_, block);
    } else if constexpr (D == 2) {
      add_rays(source, block, points);
    }
  }

  // The transpose of a homography's division: x = X/W and y = Y/W by X, Y and W.
  __attribute__((noinline)) void add_rays(const PointSource<T, D>& source, const Block& block, const Points<T, D>& points) {
    alignas(64) T divisor[kBlock];
    source.divisors(block, divisor);
    alignas(64) double by_ray[3][kBlock], entries[6][kBlock];
    for (int b = 0; b < whole_lanes(block.count); ++b) {
      const double x = points.at[0][b], y = points.at[1][b], inverse = 1.0 / static_cast<double>(divisor[b]);
      const bool counted = b < block.count && weights_[b] != T(0) && is_finite(x) && is_finite(y);
      const double by[3][2] = {{inverse, 0.0}, {0.0, inverse}, {-x * inverse, -y * inverse}};
      for (int r = 0, entry = 0; r < 3; ++r) {
        const double sum = by[r][0] * by_coordinate_[0][b] + by[r][1] * by_coordinate_[1][b];
        by_ray[r][b] = counted ? sum : 0.0;
        for (int s = r; pass_.curvature && s < 3; ++s, ++entry) {
          const double of_x = curvature_[0][b] * by[s][0] + curvature_[1][b] * by[s][1];
          const double of_y = curvature_[1][b] * by[s][0] + curvature_[2][b] * by[s][1];
          entries[entry][b] = counted ? by[r][0] * of_x + by[r][1] * of_y : 0.0;
        }
      }
    }
    if (pass_.sums)
      for (int r = 0; r < 3; ++r) rays_[r].add(by_ray[r], block);
    if (pass_.curvature) of_homography_.add(entries, block);
  }

  __attribute__((noinline)) void add_spline(const Block& block) {
    const Generator& spline = problem_.generator;
    const int64_t width = problem_.target.size[0], pixels = width * problem_.target.size[1];
    const double* basis = spline.basis + block.row.i * width + block.j;
    for (int64_t k = 0; k < spline.count / 2; ++k)
      for (int a = 0; a < 2; ++a) {
        double lanes[kLanes] = {};
        for (int b = 0; b < block.count; ++b) lanes[b % kLanes] += by_coordinate_[a][b] * basis[k * pixels + b];
        const SourceAxis to = source_axis(spline.lattice.source[a], spline.lattice.unit);
        out_[layout_.sums + 2 * k + a] += sum_lanes(lanes) * ratio(to.u, to.w);
      }
  }

  __attribute__((noinline)) void store_gradient(const Block& block) {
    for (int a = 0; a < D; ++a) {
      const SourceAxis to = source_axis(problem_.source.size[a], problem_.sampling.unit);
      const double factor = pass_.factor * ratio(to.u, to.w);
      for (int b = 0; b < block.count; ++b)
        by_coordinate_[a][b] = by_coordinate_[a][b] == 0.0 ? 0.0 : by_coordinate_[a][b] * factor;
    }
    problem_.grad_field.wide ? store_field<double>(problem_.grad_field, block, by_coordinate_)
                             : store_field<float>(problem_.grad_field, block, by_coordinate_);
  }

  STN_MEMBER void finish() {
    if (pass_.moments)
      for (int m = 0; m < kMoments; ++m) {
        double lanes[kLanes];
        store(moments_[m], lanes);
        out_[m] += sum_lanes(lanes);
      }
    if (!problem_.generator.is_linear()) return;
    const int rows = matrix_rows(problem_);
    for (int a = 0; pass_.sums && a < rows; ++a)
      for (int b = 0; b <= D; ++b) out_[layout_.sums + a * (D + 1) + b] += rays_[a].total(b);
    if (!pass_.curvature) return;
    if (rows == D) of_matrix_.add_to(out_ + layout_.curvature);
    else if constexpr (D == 2) of_homography_.add_to(out_ + layout_.curvature);
  }

  const Objective& objective_;
  const Problem& problem_;
  const Pass& pass_;
  const SumsLayout layout_;
  double* out_;
  CellPlan<T, D> plan_;
  Samples<T, D> samples_ = {};
  alignas(64) T fixed_[kBlock], weights_[kBlock];
  alignas(64) double by_coordinate_[D][kBlock], curvature_[kEntries][kBlock];
  Lanes<double> moments_[kMoments] = {};
  RaySums<D> rays_[kMaxRows];
  CurvatureSums<D, D> of_matrix_;
  CurvatureSums<D, D == 2 ? 3 : 1> of_homography_;
};

template <class S, int D>
void objective_run(const Objective& objective, const Pass& pass, int64_t n, int64_t first, int64_t last, double* sums) {
  ObjectiveRunner<S, D>(objective, pass, sums).run(n, Range{first, last});
}

}  // namespace stn::STN_ISA
