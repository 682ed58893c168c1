#include "objectives.h"

#include <algorithm>

#include "sums.h"

namespace stn {
namespace {

// Sums of all parts of items that are worked on together are at most so many numbers, but for one item's.
constexpr int64_t kMaxSums = 8 * 1024;

// Parts of an item at most: tasks of it that threads can share.
constexpr int64_t kMaxParts = 32;

// One item of a batch, in parts of so many chunks each: a power of two, so that a part is a branch of the tree by which
// chunks are added, and sums have the same bits however many parts there are.
struct Item {
  const Objective* objective;
  int64_t n, width, parts, chunks_per_part;
  int64_t first;  // of its sums
};

struct Task {
  size_t item;
  int64_t part;
};

Item item_of(const Objective& objective, int64_t n) {
  const Problem& problem = objective.problem;
  const int64_t chunks = stn::chunks(problem);
  const int64_t numbers = pixels_per_chunk(problem) * std::max<int64_t>(1, problem.source.channels);
  int64_t together = 1;
  while (together < chunks && (together * kMaxParts < chunks || together * numbers < kTaskSize)) together *= 2;
  return {&objective, n, SumsLayout(objective).count, (chunks + together - 1) / together, together, 0};
}

const double* parameters_of(const Objective& objective, int64_t n) {
  const Generator& generator = objective.problem.generator;
  return generator.parameters + (generator.batch == 1 ? 0 : n) * generator.count;
}

// The gradient of one item's parameters, from that of its matrix, which is rows of axes + 1 entries.
void matrix_adjoint(const Objective& objective, int64_t n, const double* grad_matrix, double* out) {
  const Problem& problem = objective.problem;
  Matrix by_matrix{};
  const int rows = std::min(matrix_rows(problem), kMaxRows), columns = problem.axes + 1;
  for (int a = 0; a < rows; ++a)
    for (int b = 0; b < columns; ++b) by_matrix.at[a][b] = grad_matrix[a * columns + b];
  pixel_matrix_adjoint(problem.generator.kind, problem.generator.lattice, parameters_of(objective, n), by_matrix, out);
}

// The gradient of ncc but for its factor, from those of the terms of G.
std::vector<double> joined_terms(const double* sums, int64_t count, const Compared& found) {
  const double *moving = sums + kOfMoving * count, *fixed = sums + kOfFixed * count, *one = sums + kOfOne * count;
  std::vector<double> joined(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k)
    joined[k] = found.ratio * (moving[k] - found.moving_mean * one[k]) - (fixed[k] - found.fixed_mean * one[k]);
  return joined;
}

void finish_gradient(const Item& item, const double* sums, const Compared& found) {
  const Objective& objective = *item.objective;
  const Generator& generator = objective.problem.generator;
  const double factor = found.factor;
  double* out = objective.gradient + item.n * generator.count;
  std::vector<double> joined;
  if (objective.terms() > 1) {
    joined = joined_terms(sums, matrix_rows(objective.problem) * (objective.problem.axes + 1), found);
    sums = joined.data();
  }
  if (generator.is_linear()) matrix_adjoint(objective, item.n, sums, out);
  else std::copy_n(sums, generator.count, out);
  for (int64_t k = 0; k < generator.count; ++k) out[k] = factor == 0.0 ? 0.0 : factor * out[k];
}

// The Gauss-Newton matrix by the parameters: the adjoint of the pixel matrix, on both sides of that by its entries.
void finish_curvature(const Item& item, const double* sums, double factor) {
  const Objective& objective = *item.objective;
  const int64_t count = objective.problem.generator.count;
  const int rows = matrix_rows(objective.problem), columns = objective.problem.axes + 1;
  constexpr int kMaxEntries = kMaxRows * (kMaxAxes + 1);
  double by_entries[kMaxEntries][kMaxEntries];
  for (int a = 0; a < rows; ++a)
    for (int b = a; b < rows; ++b)
      for (int c = 0; c < columns; ++c)
        for (int d = c; d < columns; ++d) {
          const double sum = factor == 0.0 ? 0.0 : factor * *sums++;
          for (const auto& [r, s] : {std::pair(a, b), std::pair(b, a)})
            by_entries[r * columns + c][s * columns + d] = by_entries[r * columns + d][s * columns + c] = sum;
        }
  double half[kMaxEntries][kMaxEntries], column[kMaxEntries];
  for (int64_t e = 0; e < rows * columns; ++e) matrix_adjoint(objective, item.n, by_entries[e], half[e]);
  double* out = objective.gauss_newton + item.n * count * count;
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t e = 0; e < rows * columns; ++e) column[e] = half[e][k];
    matrix_adjoint(objective, item.n, column, out + k * count);
  }
}

// Runs passes of some items together.
class Wave {
 public:
  Wave(const InstructionSet& isa, Threads threads) : isa_(isa), threads_(threads) {}

  // Takes an item, after running those that there is no more room beside.
  void add(Item item) {
    const int64_t numbers = item.parts * item.width, present = static_cast<int64_t>(sums_.size());
    if (present > 0 && present + numbers > kMaxSums) run();
    item.first = static_cast<int64_t>(sums_.size());
    sums_.resize(sums_.size() + static_cast<size_t>(std::max<int64_t>(1, item.parts) * item.width), 0.0);
    items_.push_back(item);
  }

  void run() {
    std::vector<Pass> passes;
    for (const Item& item : items_) passes.push_back(first_pass(*item.objective));
    pass(passes);
    std::vector<Compared> found;
    for (size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      const Objective& objective = *item.objective;
      const double* sums = sums_.data() + item.first;
      found.push_back(compared(objective.loss, static_cast<double>(objective.problem.source.channels), sums));
      objective.value[item.n] = found[i].value;
      objective.count[item.n] = sums[kWeight];
      if (passes[i].sums || passes[i].curvature) finish(item, passes[i], found[i]);
      passes[i] = second_pass(objective, found[i]);
    }
    pass(passes);
    for (size_t i = 0; i < items_.size(); ++i)
      if (passes[i].sums) finish(items_[i], passes[i], found[i]);
    scale_fields(found);
    items_.clear();
    sums_.clear();
  }

 private:
  // Fields and splines need the means of both maps first for ncc; all others are scaled when M is known.
  static bool is_at_once(const Objective& objective) { return objective.loss != Loss::ncc || objective.terms() > 1; }

  static Pass first_pass(const Objective& objective) {
    const bool at_once = is_at_once(objective);
    Pass pass{true, at_once && objective.needs_sums(), at_once && objective.needs_curvature(),
              at_once && objective.needs_field(), Compared{}};
    pass.item.factor = 1.0 / most_terms(objective);
    return pass;
  }

  // How many terms a gradient has where all points count once. A field is divided by that until M is known, since what
  // it is stored in may have no room for more. Weights of which most are beyond 2^100, or below its inverse, are not
  // made up for: float32 fields lose bits under them, or overflow.
  static double most_terms(const Objective& objective) {
    const Problem& problem = objective.problem;
    return static_cast<double>(std::max<int64_t>(1, problem.source.channels * problem.pixels()));
  }

  static Pass second_pass(const Objective& objective, const Compared& found) {
    const bool is_left = !is_at_once(objective);
    return {false, is_left && objective.needs_sums(), false, is_left && objective.needs_field(), found};
  }

  void scale_fields(const std::vector<Compared>& found) {
    std::vector<Task> tasks;
    for (size_t i = 0; i < items_.size(); ++i) {
      const Objective& objective = *items_[i].objective;
      if (!objective.needs_field() || !is_at_once(objective)) continue;
      for (int64_t part = 0; part < items_[i].parts; ++part) tasks.push_back({i, part});
    }
    for_each_task(static_cast<int64_t>(tasks.size()), threads_, [&](int64_t t) {
      const Task& task = tasks[static_cast<size_t>(t)];
      const Item& item = items_[task.item];
      const PointField& field = item.objective->problem.grad_field;
      const int64_t numbers = item.objective->problem.pixels() * item.objective->problem.axes;
      const int64_t first = numbers * task.part / item.parts, last = numbers * (task.part + 1) / item.parts;
      const double factor = found[task.item].factor * most_terms(*item.objective);
      field.wide ? scale<double>(field, item.n * numbers, first, last, factor)
                 : scale<float>(field, item.n * numbers, first, last, factor);
    });
  }

  template <class P>
  static void scale(const PointField& field, int64_t item, int64_t first, int64_t last, double factor) {
    P* data = static_cast<P*>(field.data) + item;
    for (int64_t k = first; k < last; ++k) data[k] = static_cast<P>(data[k] * factor);
  }

  void finish(const Item& item, const Pass& pass, const Compared& found) {
    const SumsLayout layout(*item.objective);
    const double* sums = sums_.data() + item.first;
    if (pass.sums) finish_gradient(item, sums + layout.sums, found);
    if (pass.curvature) finish_curvature(item, sums + layout.curvature, found.factor);
  }

  // One pass of every item that has one, and the sums of its parts in the first of them.
  void pass(const std::vector<Pass>& passes) {
    std::vector<Task> tasks;
    int64_t numbers = 0;
    for (size_t i = 0; i < items_.size(); ++i) {
      if (!passes[i].moments && !passes[i].sums && !passes[i].field) continue;
      for (int64_t part = 0; part < items_[i].parts; ++part) tasks.push_back({i, part});
      const Problem& problem = items_[i].objective->problem;
      numbers += problem.pixels() * problem.source.channels;
    }
    Threads threads = threads_;
    if (numbers < kWorthAThread) threads.count = 1;
    for_each_task(static_cast<int64_t>(tasks.size()), threads, [&](int64_t t) {
      const Task& task = tasks[static_cast<size_t>(t)];
      run_part(items_[task.item], passes[task.item], task.part);
    });
    for (size_t i = 0; i < items_.size(); ++i)
      if (passes[i].moments || passes[i].sums) join_parts(items_[i]);
  }

  void run_part(const Item& item, const Pass& pass, int64_t part) {
    const Objective& objective = *item.objective;
    const Problem& problem = objective.problem;
    const ObjectiveRun run = isa_.objective[static_cast<int>(problem.storage)](problem.axes);
    const int64_t first = part * item.chunks_per_part, step = pixels_per_chunk(problem);
    const int64_t count = std::min(item.chunks_per_part, chunks(problem) - first);
    add_tree(count, item.width, sums_.data() + item.first + part * item.width, [&](int64_t k, double* sums) {
      const int64_t pixel = (first + k) * step;
      run(objective, pass, item.n, pixel, std::min(pixel + step, problem.pixels()), sums);
    });
  }

  void join_parts(const Item& item) {
    double* sums = sums_.data() + item.first;
    add_tree(item.parts, item.width, sums,
             [&](int64_t part, double* out) { std::copy_n(sums + part * item.width, item.width, out); });
  }

  const InstructionSet& isa_;
  const Threads threads_;
  std::vector<Item> items_;
  std::vector<double> sums_;
};

}  // namespace

void objectives(const std::vector<Objective>& objectives, const InstructionSet& isa, Threads threads) {
  Wave wave(isa, threads);
  for (const Objective& objective : objectives)
    for (int64_t n = 0; n < objective.problem.batch; ++n) wave.add(item_of(objective, n));
  wave.run();
}

}  // namespace stn
