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

// Sums over target pixels of q times the products of at most Degree of their lattice coordinates (j, i, k, 1): pairs c
// <= d of these in order, or each alone. In sixteen lanes that a fixed tree joins.
template <int D, int Degree>
class LatticeSums {
 public:
  static constexpr int kCount = Degree == 1 ? D + 1 : (D + 1) * (D + 2) / 2;

  STN_MEMBER void add(const double* q, const Block& block) {
    if (block.width > 0) return add_run(q, block);
    // Along a row i and k are the same, and j is the first one and a step.
    Lanes<double> sum{}, by_step{}, by_steps{};
    for (int b = 0; b < block.count; b += kLanes) {
      const Lanes<double> value = load(q + b), step = converted<double>(counting<float>() + static_cast<float>(b));
      const Lanes<double> once = value * step;
      sum += value, by_step += once;
      if constexpr (Degree == 2) by_steps += once * step;
    }
    const double first = static_cast<double>(block.j);
    const double at[kMaxAxes] = {0.0, static_cast<double>(block.row.i), static_cast<double>(block.row.k)};
    const Lanes<double> by_j = by_step + first * sum;
    if constexpr (Degree == 1) {
      for (int c = 0; c <= D; ++c) sums_[c] += c == 0 ? by_j : c < D ? at[c] * sum : sum;
    } else {
      int place = 0;
      sums_[place++] += by_steps + first * (by_step + by_j);
      for (int d = 1; d <= D; ++d) sums_[place++] += d < D ? at[d] * by_j : by_j;
      for (int c = 1; c <= D; ++c)
        for (int d = c; d <= D; ++d) sums_[place++] += ((c < D ? at[c] : 1.0) * (d < D ? at[d] : 1.0)) * sum;
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
  __attribute__((noinline)) void add_run(const double* q, const Block& block) {
    const Placer<double, D> places(block);
    for (int b = 0; b < block.count; b += kLanes) {
      const Places<double, D> at = places(b);
      const Lanes<double> value = load(q + b);
      int place = 0;
      for (int c = 0; c <= D; ++c) {
        const Lanes<double> once = c < D ? value * at.at[c] : value;
        if constexpr (Degree == 1) sums_[place++] += once;
        else
          for (int d = c; d <= D; ++d) sums_[place++] += d < D ? once * at.at[d] : once;
      }
    }
  }

  Lanes<double> sums_[kCount] = {};
};

// The moments of one channel, but for the weight.
template <Loss kind>
class MomentSums {
 public:
  template <class T>
  STN_MEMBER void add(const Lanes<T>& w, const Lanes<T>& V, const Lanes<T>& F, double delta) {
    const Lanes<double> weight = converted<double>(w);
    if constexpr (kind == Loss::ncc) {
      const Lanes<double> moving = converted<double>(V), fixed = converted<double>(F);
      const Lanes<double> of_moving = weight * moving, of_fixed = weight * fixed;
      sums_[0] += of_moving, sums_[1] += of_fixed;
      sums_[2] += of_moving * moving, sums_[3] += of_fixed * fixed, sums_[4] += of_moving * fixed;
    } else {
      const Lanes<double> e = converted<double>(V - F);
      if constexpr (kind == Loss::ssd) sums_[0] += weight * e * e;
      else sums_[0] += weight * huber(e, delta);
    }
  }

  STN_MEMBER void add_to(Lanes<double> (&moments)[kMoments]) const {
    for (int m = 0; m < kCount; ++m) moments[kLoss + m] += sums_[m];
  }

 private:
  // What lies within delta, e² / 2, and what lies beyond, as a line.
  STN_MEMBER static Lanes<double> huber(const Lanes<double>& e, double delta) {
    const Lanes<double> near = clamp_to(e, -delta, delta);
    return near * (e - near * 0.5);
  }

  static constexpr int kCount = kind == Loss::ncc ? 5 : 1;
  Lanes<double> sums_[kCount] = {};
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
    Lanes<double> sum{};
    for (int b = 0; b < block.count; b += kLanes) {
      const Lanes<T> w = load(weights_ + b);
      counted |= w != Lanes<T>{};
      if (pass_.moments) sum += converted<double>(w);
    }
    moments_[kWeight] += sum;
    const bool is_needed = any_of(counted);
    if (!is_needed && !pass_.field) return;
    is_first_ = true;
    if (problem_.generator.kind == Kind::homography) read_ = points;
    if (is_needed) add_channels(block, points);
    if (is_first_) clear(block.count);
    if (pass_.sums || pass_.curvature) add_parameters(source, block);
    if (pass_.field) store_gradient(block);
  }

  STN_MEMBER void clear(int count) {
    for (int b = 0; b < count; b += kLanes) {
      for (auto& axis : by_coordinate_) store(Lanes<double>{}, axis + b);
      for (auto& entry : curvature_) store(Lanes<double>{}, entry + b);
    }
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
      is_first_ = false;
    }
  }

  // What one channel contributes. Where nothing is counted nothing is used, whatever it is: 0 times NaN would be NaN.
  template <Loss kind>
  __attribute__((noinline)) void add_channel(int count) {
    const bool moments = pass_.moments, slopes = has_slopes(), curves = pass_.curvature, is_first = is_first_;
    MomentSums<kind> sums;
    for (int b = 0; b < count; b += kLanes) {
      const Lanes<T> w = load(weights_ + b);
      const Lanes<Mask<T>> counted = w != Lanes<T>{};
      const Lanes<T> V = masked(counted, load(samples_.value + b)), F = masked(counted, load(fixed_ + b));
      if (moments) sums.add(w, V, F, objective_.delta);
      if (!slopes) continue;
      const Lanes<T> G = gradient<kind>(w, V, F);
      Lanes<T> slope[D];
      for (int a = 0; a < D; ++a) {
        slope[a] = masked(counted, load(samples_.slope[a] + b));
        put(G * slope[a], is_first, by_coordinate_[a] + b);
      }
      if (!curves) continue;
      const Lanes<T> curvature = curved<kind>(w, V - F);
      for (int a = 0, entry = 0; a < D; ++a)
        for (int c = a; c < D; ++c, ++entry) put(curvature * slope[a] * slope[c], is_first, curvature_[entry] + b);
    }
    if (moments) sums.add_to(moments_);
  }

  // Adds sixteen numbers to those of the channels before.
  STN_MEMBER static void put(const Lanes<T>& terms, bool is_first, double* sums) {
    if (is_first) store(converted<double>(terms), sums);
    else store(load(sums) + converted<double>(terms), sums);
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
  STN_MEMBER void add_parameters(const PointSource<T, D>& source, const Block& block) {
    if (!problem_.generator.is_linear()) {
      if constexpr (D == 2) add_spline(block);
    } else if (problem_.generator.kind != Kind::homography) {
      if (pass_.sums)
        for (int a = 0; a < D; ++a) rays_[a].add(by_coordinate_[a], block);
      for (int entry = 0; pass_.curvature && entry < kEntries; ++entry)
        of_entries_[entry].add(curvature_[entry], block);
    } else if constexpr (D == 2) {
      add_rays(source, block);
    }
  }

  // The transpose of a homography's division: x = X/W and y = Y/W by X, Y and W.
  __attribute__((noinline)) void add_rays(const PointSource<T, D>& source, const Block& block) {
    alignas(64) T divisor[kBlock];
    source.divisors(block, divisor);
    alignas(64) double by_ray[3][kBlock], entries[6][kBlock];
    for (int b = 0; b < whole_lanes(block.count); ++b) {
      const double x = read_.at[0][b], y = read_.at[1][b], inverse = 1.0 / static_cast<double>(divisor[b]);
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
    for (int entry = 0; pass_.curvature && entry < 6; ++entry) of_entries_[entry].add(entries[entry], block);
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
      for (int b = 0; b < block.count; b += kLanes) store(load(by_coordinate_[a] + b) * factor, by_coordinate_[a] + b);
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
    for (int a = 0; pass_.sums && a < rows; ++a) rays_[a].add_to(out_ + layout_.sums + a * (D + 1));
    for (int64_t entry = 0; pass_.curvature && entry < pairs_of(rows); ++entry)
      of_entries_[entry].add_to(out_ + layout_.curvature + entry * pairs_of(D + 1));
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
  bool is_first_ = true;  // of the channels
  Points<T, D> read_;     // of a homography, before padding moves them
  LatticeSums<D, 1> rays_[kMaxRows];
  LatticeSums<D, 2> of_entries_[pairs_of(kMaxRows)];
};

template <class S, int D>
void objective_run(const Objective& objective, const Pass& pass, int64_t n, int64_t first, int64_t last, double* sums) {
  ObjectiveRunner<S, D>(objective, pass, sums).run(n, Range{first, last});
}

}  // namespace stn::STN_ISA
