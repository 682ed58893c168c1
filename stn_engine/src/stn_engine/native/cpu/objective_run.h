// Objectives, block by block: points, V and its slopes, what they differ from the fixed map, and the adjoint of the
// generator. Neither V nor its gradient is ever in memory.
#pragma once

#include "objective.h"
#include "parameter_runs.h"

namespace stn::STN_ISA {

// One channel at sixteen points: V, and its slopes by the coordinates in pixels.
template <class T, int D>
struct Sample {
  Lanes<T> value, slope[D];
};

// The same at the points of a block.
template <class T, int D>
struct Samples {
  alignas(64) T value[kBlock];
  alignas(64) T slope[D][kBlock];

  STN_MEMBER Sample<T, D> operator()(int b) const {
    Sample<T, D> sample;
    sample.value = load(value + b);
    for (int a = 0; a < D; ++a) sample.slope[a] = load(slope[a] + b);
    return sample;
  }

  STN_MEMBER void put(const Sample<T, D>& sample, int b) {
    store(sample.value, value + b);
    for (int a = 0; a < D; ++a) store(sample.slope[a], slope[a] + b);
  }
};

// Equations (1) to (3) of sixteen cells; slopes are 0 where they are not asked for.
template <class S, class T, int D, bool Adjacent>
STN_FUNCTION Sample<T, D> sample_cells(const S* channel, const CellPlan<T, D>& plan, int b,
                                       const Constants<T>& constants, bool slopes) {
  const bool inside = plan.reads_of(b) == Reads::inside;
  const CellPixels<T, D> cells = load_cells<S, T, D, Adjacent>(channel, plan, b, constants.outside);
  Sample<T, D> sample{};
  sample.value = blend_cells(plan, b, cells);
  if (!inside) sample.value = with_constants(plan.live + b, plan.finite + b, constants, sample.value);
  if (!slopes) return sample;
#pragma GCC unroll 3
  for (int a = 0; a < D; ++a) {
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
    sample.slope[a] = sum;
  }
  return sample;
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

// Sums over target pixels of q times the products of at most Degree of their lattice coordinates (j, i, k, 1): pairs c
// <= d of these in order, or each alone. In sixteen lanes that a fixed tree joins.
template <int D, int Degree>
class LatticeSums {
 public:
  static constexpr int kCount = Degree == 1 ? D + 1 : (D + 1) * (D + 2) / 2;

  STN_MEMBER void add(const double* q, const Block& block) {
    if (block.width > 0) return add_run(q, block);
    // Along a row i and k are the same, and j is the first one, sixteens and a lane. From the last sixteen pixels to
    // the first, what is summed so far is added once for every step, so that q counts as often as it is sixteens away.
    Lanes<double> sum{}, by_sixteens{}, by_pairs{};
    for (int b = whole_lanes(block.count) - kLanes; b > 0; b -= kLanes) {
      sum += load(q + b), by_sixteens += sum;
      if constexpr (Degree == 2) by_pairs += by_sixteens;
    }
    sum += load(q);
    const Lanes<double> lane = counting<double>(), by_step = lane * sum + by_sixteens * double(kLanes);
    const double first = static_cast<double>(block.j);
    const double at[kMaxAxes] = {0.0, static_cast<double>(block.row.i), static_cast<double>(block.row.k)};
    const Lanes<double> by_j = by_step + first * sum;
    if constexpr (Degree == 1) {
      for (int c = 0; c <= D; ++c) sums_[c] += c == 0 ? by_j : c < D ? at[c] * sum : sum;
    } else {
      int place = 0;
      const Lanes<double> by_squares = (by_pairs + by_pairs - by_sixteens) * double(kLanes * kLanes);
      const Lanes<double> by_steps = lane * (by_step + by_sixteens * double(kLanes)) + by_squares;
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

// The moments of one channel, but for the weight, which is 1 unless there are weights.
template <Loss kind, bool Weighted>
class MomentSums {
 public:
  template <class T>
  STN_MEMBER void add(const Lanes<T>& w, const Lanes<T>& V, const Lanes<T>& F, double delta) {
    const auto weighted = [weight = converted<double>(w)](const Lanes<double>& x) {
      if constexpr (Weighted) return weight * x;
      else return x;
    };
    if constexpr (kind == Loss::ncc) {
      const Lanes<double> moving = converted<double>(V), fixed = converted<double>(F);
      const Lanes<double> of_moving = weighted(moving), of_fixed = weighted(fixed);
      sums_[0] += of_moving, sums_[1] += of_fixed;
      sums_[2] += of_moving * moving, sums_[3] += of_fixed * fixed, sums_[4] += of_moving * fixed;
    } else {
      const Lanes<double> e = converted<double>(V - F);
      if constexpr (kind == Loss::ssd) sums_[0] += weighted(e) * e;
      else sums_[0] += weighted(huber(e, delta));
    }
  }

  STN_MEMBER void add_to(Lanes<double> (&moments)[kMoments]) const {
    for (int m = 0; m < kCount; ++m) moments[kLoss + m] += sums_[m];
  }

 private:
  static constexpr int kCount = kind == Loss::ncc ? 5 : 1;
  Lanes<double> sums_[kCount] = {};
};

// How many points of a block count: those outside of the domain and those that weigh 0 do not.
enum class Counted {
  none,
  some,
  all,  // each of whole vectors, and once
};

template <class S, int D>
class ObjectiveRunner {
 public:
  using T = Compute<S>;
  static constexpr int kEntries = D * (D + 1) / 2;

  ObjectiveRunner(const Objective& objective, const Pass& pass, double* sums)
      : objective_(objective),
        problem_(objective.problem),
        pass_(pass),
        layout_(objective),
        terms_(objective.terms()),
        out_(sums) {}

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
      const auto fill_and_visit = [&](const Block& block) {
        Points<T, D> points;
        source.fill(block, points);
        visit(source, block, points);
      };
      if (has_blocks_across_rows(problem_)) for_blocks_of_run(problem_, n, run, fill_and_visit);
      else
        for_rows_of_run(problem_, n, run,
                        [&](const Row& row, Range range) { for_blocks_of_row(row, range, fill_and_visit); });
    }
    finish();
  }

 private:
  // All channels of a block.
  __attribute__((noinline)) void add(const PointSource<T, D>& source, const Block& block, Points<T, D>& points) {
    // Without a factor there is no gradient, whatever the maps hold: 0 times infinity would be NaN.
    counted_ = pass_.item.factor == 0.0 ? Counted::none : weigh(block, points);
    if (counted_ == Counted::none && !pass_.field) return;
    is_first_ = true;
    if (problem_.generator.kind == Kind::homography) read_ = points;
    if (counted_ != Counted::none) add_channels(block, points);
    if (is_first_) clear(block.count);
    if (pass_.sums || pass_.curvature) add_parameters(source, block);
    if (pass_.field) store_gradient(block);
  }

  // Sets the weights of a block's points, 0 in the lanes behind them, and adds them up.
  STN_MEMBER Counted weigh(const Block& block, const Points<T, D>& points) {
    const bool given = objective_.weights.data != nullptr;
    if (given) load_grad<S>(objective_.weights, block, 0, weights_);
    Lanes<Mask<T>> any{}, all = Lanes<Mask<T>>::all(given ? 0 : -1);
    for (int b = 0; b < block.count; b += kLanes) {
      Lanes<Mask<T>> counted = counting<Mask<T>>() + static_cast<Mask<T>>(b) < Lanes<Mask<T>>::all(block.count);
      if (objective_.domain == Domain::overlap)
        for (int a = 0; a < D; ++a) {
          const Lanes<T> x = load(points.at[a] + b);
          const T last = static_cast<T>(problem_.source.size[a] - 1);
          counted &= (x >= Lanes<T>{}) & (x <= Lanes<T>::all(last));
        }
      const Lanes<T> w = masked(counted, given ? load(weights_ + b) : Lanes<T>::all(1));
      any |= w != Lanes<T>{}, all &= counted;
      store(w, weights_ + b);
    }
    const bool has_all = all_of(all);
    if (pass_.moments) moments_[kWeight] += has_all ? Lanes<double>::all(block.count / kLanes) : weight(block.count);
    return has_all ? Counted::all : any_of(any) ? Counted::some : Counted::none;
  }

  STN_MEMBER Lanes<double> weight(int count) const {
    Lanes<double> sum{};
    for (int b = 0; b < count; b += kLanes) sum += converted<double>(load(weights_ + b));
    return sum;
  }

  STN_MEMBER void clear(int count) {
    for (int b = 0; b < count; b += kLanes) {
      for (int term = 0; term < terms_; ++term)
        for (auto& axis : by_coordinate_[term]) store(Lanes<double>{}, axis + b);
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
    const bool adjacent = has_adjacent_pixels(problem_.source), slopes = has_slopes();
    for_channels(block, [&](const S* channel, const Constants<T>& constants) {
      prefetch(channel, plan_, block.count);
      if (adjacent)
        return add_channel(block.count, [&](int b) __attribute__((always_inline)) {
          return sample_cells<S, T, D, true>(channel, plan_, b, constants, slopes);
        });
      for (int b = 0; b < block.count; b += kLanes)
        samples_.put(sample_cells<S, T, D, false>(channel, plan_, b, constants, slopes), b);
      add_channel(block.count, samples_);
    });
  }

  template <int K>
  __attribute__((noinline)) void add_taps(const Block& block, Points<T, D>& points) {
    TapPlan<T, D, K> plan;
    plan_taps(problem_, block.count, points, plan);
    for_channels(block, [&](const S* channel, const Constants<T>& constants) {
      sample_taps<S, T, D, K>(channel, plan, block.count, constants, has_slopes(), samples_);
      add_channel(block.count, samples_);
    });
  }

  STN_MEMBER bool has_slopes() const { return pass_.sums || pass_.curvature || pass_.field; }

  // Runs add(channel, constants) over the channels of the moving map, that of the fixed one being at hand.
  template <class Add>
  STN_MEMBER void for_channels(const Block& block, Add add) {
    const S* source = source_of<S>(problem_, block.row.n);
    for (int64_t c = 0; c < problem_.source.channels; ++c) {
      load_grad<S>(objective_.fixed, block, c, fixed_);
      add(source + c * problem_.source.channel_stride, constants_of<T>(problem_.sampling, c));
      is_first_ = false;
    }
  }

  // What one channel contributes, of which sample(b) gives sixteen points.
  template <class Sampler>
  STN_MEMBER void add_channel(int count, const Sampler& sample) {
    const auto add = [&](auto loss, auto moments, auto slopes) {
      if (counted_ == Counted::all) add_points<loss(), moments(), slopes(), false>(count, sample);
      else add_points<loss(), moments(), slopes(), true>(count, sample);
    };
    const auto add_with = [&](auto loss) {
      if (!has_slopes()) return add(loss, std::true_type(), std::false_type());
      if constexpr (loss() == Loss::ncc)
        if (!pass_.moments) return add(loss, std::false_type(), std::true_type());
      add(loss, std::true_type(), std::true_type());
    };
    switch (objective_.loss) {
      case Loss::ssd: return add_with(std::integral_constant<Loss, Loss::ssd>());
      case Loss::huber: return add_with(std::integral_constant<Loss, Loss::huber>());
      case Loss::ncc: return add_with(std::integral_constant<Loss, Loss::ncc>());
    }
  }

  // Where nothing is counted nothing is used, whatever it is: 0 times NaN would be NaN.
  template <Loss kind, bool Moments, bool Slopes, bool Weighted, class Sampler>
  __attribute__((noinline)) void add_points(int count, const Sampler& sampler) {
    const bool curves = pass_.curvature, is_first = is_first_;
    MomentSums<kind, Weighted> sums;
    for (int b = 0; b < count; b += kLanes) {
      const Lanes<T> w = Weighted ? load(weights_ + b) : Lanes<T>::all(1);
      const auto kept = [counted = w != Lanes<T>{}](const Lanes<T>& x) { return Weighted ? masked(counted, x) : x; };
      const Sample<T, D> sample = sampler(b);
      const Lanes<T> V = kept(sample.value), F = kept(load(fixed_ + b));
      if constexpr (Moments) sums.add(w, V, F, objective_.delta);
      if constexpr (!Slopes) continue;
      // In double: products of numbers of the maps overflow T where no result does.
      const Lanes<double> weight = converted<double>(w), moving = converted<double>(V), fixed = converted<double>(F);
      Lanes<double> slope[D];
#pragma GCC unroll 3
      for (int a = 0; a < D; ++a) slope[a] = converted<double>(kept(sample.slope[a]));
      if constexpr (Moments && kind == Loss::ncc) {
#pragma GCC unroll 3
        for (int a = 0; a < D; ++a) {
          const Lanes<double> of_one = weight * slope[a];
          put(moving * of_one, is_first, by_coordinate_[kOfMoving][a] + b);
          put(fixed * of_one, is_first, by_coordinate_[kOfFixed][a] + b);
          put(of_one, is_first, by_coordinate_[kOfOne][a] + b);
        }
      } else {
        const Lanes<double> e = converted<double>(V - F);
        const Lanes<double> G = gradient_of(kind, objective_.delta, pass_.item, weight, moving, fixed, e);
#pragma GCC unroll 3
        for (int a = 0; a < D; ++a) put(G * slope[a], is_first, by_coordinate_[0][a] + b);
        if (!curves) continue;
        const Lanes<double> curvature = curvature_of(kind, objective_.delta, weight, e);
#pragma GCC unroll 3
        for (int a = 0; a < D; ++a)
#pragma GCC unroll 3
          for (int c = a; c < D; ++c)
            put(curvature * slope[a] * slope[c], is_first, curvature_[a * D - a * (a - 1) / 2 + c - a] + b);
      }
    }
    if constexpr (Moments) sums.add_to(moments_);
  }

  // Adds sixteen numbers to those of the channels before.
  STN_MEMBER static void put(const Lanes<double>& terms, bool is_first, double* sums) {
    if (is_first) store(terms, sums);
    else store(load(sums) + terms, sums);
  }

  // From the sums over channels at every point to those of the parameters.
  STN_MEMBER void add_parameters(const PointSource<T, D>& source, const Block& block) {
    if (!problem_.generator.is_linear()) {
      if constexpr (D == 2) add_spline(block);
    } else if (problem_.generator.kind != Kind::homography) {
      for (int term = 0; pass_.sums && term < terms_; ++term)
        for (int a = 0; a < D; ++a) rays_[term][a].add(by_coordinate_[term][a], block);
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
    alignas(64) double by_ray[kMaxTerms][3][kBlock], entries[6][kBlock];
    for (int b = 0; b < block.count; b += kLanes) {
      const Lanes<T> at[2] = {load(read_.at[0] + b), load(read_.at[1] + b)};
      const auto counted = converted<int64_t>((load(weights_ + b) != Lanes<T>{}) & is_finite(at[0]) & is_finite(at[1]));
      const Lanes<double> inverse = 1.0 / converted<double>(load(divisor + b)), zero{};
      const Lanes<double> x = converted<double>(at[0]), y = converted<double>(at[1]);
      const Lanes<double> by[3][2] = {{inverse, zero}, {zero, inverse}, {-x * inverse, -y * inverse}};
      for (int term = 0; pass_.sums && term < terms_; ++term) {
        const Lanes<double> of_x = load(by_coordinate_[term][0] + b), of_y = load(by_coordinate_[term][1] + b);
        for (int r = 0; r < 3; ++r) store(masked(counted, by[r][0] * of_x + by[r][1] * of_y), by_ray[term][r] + b);
      }
      if (!pass_.curvature) continue;
      const Lanes<double> xx = load(curvature_[0] + b), xy = load(curvature_[1] + b), yy = load(curvature_[2] + b);
      for (int r = 0, entry = 0; r < 3; ++r)
        for (int s = r; s < 3; ++s, ++entry) {
          const Lanes<double> of_x = xx * by[s][0] + xy * by[s][1], of_y = xy * by[s][0] + yy * by[s][1];
          store(masked(counted, by[r][0] * of_x + by[r][1] * of_y), entries[entry] + b);
        }
    }
    for (int term = 0; pass_.sums && term < terms_; ++term)
      for (int r = 0; r < 3; ++r) rays_[term][r].add(by_ray[term][r], block);
    for (int entry = 0; pass_.curvature && entry < 6; ++entry) of_entries_[entry].add(entries[entry], block);
  }

  __attribute__((noinline)) void add_spline(const Block& block) {
    const Generator& spline = problem_.generator;
    const int64_t width = problem_.target.size[0], pixels = width * problem_.target.size[1];
    const double* basis = spline.basis + block.row.i * width + block.j;
    for (int64_t k = 0; k < spline.count / 2; ++k)
      for (int a = 0; a < 2; ++a) {
        double lanes[kLanes] = {};
        for (int b = 0; b < block.count; ++b) lanes[b % kLanes] += by_coordinate_[0][a][b] * basis[k * pixels + b];
        const SourceAxis to = source_axis(spline.lattice.source[a], spline.lattice.unit);
        out_[layout_.sums + 2 * k + a] += sum_lanes(lanes) * ratio(to.u, to.w);
      }
  }

  __attribute__((noinline)) void store_gradient(const Block& block) {
    for (int a = 0; a < D; ++a) {
      const SourceAxis to = source_axis(problem_.source.size[a], problem_.sampling.unit);
      const double factor = pass_.item.factor * ratio(to.u, to.w);
      for (int b = 0; b < block.count; b += kLanes)
        store(load(by_coordinate_[0][a] + b) * factor, by_coordinate_[0][a] + b);
    }
    problem_.grad_field.wide ? store_field<double>(problem_.grad_field, block, by_coordinate_[0])
                             : store_field<float>(problem_.grad_field, block, by_coordinate_[0]);
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
    for (int term = 0; pass_.sums && term < terms_; ++term)
      for (int a = 0; a < rows; ++a) rays_[term][a].add_to(out_ + layout_.sums + (term * rows + a) * (D + 1));
    for (int64_t entry = 0; pass_.curvature && entry < pairs_of(rows); ++entry)
      of_entries_[entry].add_to(out_ + layout_.curvature + entry * pairs_of(D + 1));
  }

  const Objective& objective_;
  const Problem& problem_;
  const Pass& pass_;
  const SumsLayout layout_;
  const int terms_;
  double* out_;
  CellPlan<T, D> plan_;
  Samples<T, D> samples_ = {};
  alignas(64) T fixed_[kBlock], weights_[kBlock];
  alignas(64) double by_coordinate_[kMaxTerms][D][kBlock], curvature_[kEntries][kBlock];
  Lanes<double> moments_[kMoments] = {};
  Counted counted_ = Counted::none;
  bool is_first_ = true;  // of the channels
  Points<T, D> read_;     // of a homography, before padding moves them
  LatticeSums<D, 1> rays_[kMaxTerms][kMaxRows];
  LatticeSums<D, 2> of_entries_[pairs_of(kMaxRows)];
};

template <class S, int D>
void objective_run(const Objective& objective, const Pass& pass, int64_t n, int64_t first, int64_t last, double* sums) {
  ObjectiveRunner<S, D>(objective, pass, sums).run(n, Range{first, last});
}

}  // namespace stn::STN_ISA
