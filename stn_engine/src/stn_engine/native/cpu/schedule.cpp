#include "schedule.h"

#include <algorithm>
#include <functional>

#include "pool.h"
#include "sums.h"

namespace stn {
namespace {

// Parts of the sums of a problem at most, but for one of every item.
constexpr int64_t kMaxParts = 256;

// What there is to compute of a problem: values, or the parts of a gradient.
enum class Work { values, parameter_sums, points, map };

// Equal units of work for each of some items of a problem's batch, and the tasks that they are cut into.
struct Span {
  Work work;
  int64_t problem, items, units, unit_size;  // units of an item
  int64_t step = 1, pieces = 0;              // units of a task, and tasks of an item
  int64_t end = 0;                           // of its tasks among those of the call
};

struct Task {
  Work work;
  int64_t problem, n, first, last;
};

// Cuts spans into tasks of about one size, never a unit apart; how many of them there are.
int64_t cut(std::vector<Span>& spans, int64_t task_size) {
  int64_t tasks = 0;
  for (Span& span : spans) {
    span.step = std::max<int64_t>(1, task_size / std::max<int64_t>(1, span.unit_size));
    span.pieces = (span.units + span.step - 1) / span.step;
    span.end = tasks += span.items * span.pieces;
  }
  return tasks;
}

// Found, not kept, so that a call takes no memory for each of its tasks.
Task task_of(const std::vector<Span>& spans, int64_t t) {
  const auto ends_later = [](int64_t task, const Span& span) { return task < span.end; };
  const Span& span = *std::upper_bound(spans.begin(), spans.end(), t, ends_later);
  const int64_t place = t - (span.end - span.items * span.pieces), first = place % span.pieces * span.step;
  return {span.work, span.problem, place / span.pieces, first, std::min(first + span.step, span.units)};
}

int64_t size_of(const std::vector<Span>& spans) {
  int64_t size = 0;
  for (const Span& span : spans) size += span.items * span.units * span.unit_size;
  return size;
}

// Runs the tasks of a call; neighbouring ones together, if there are very many.
void run(std::vector<Span>& spans, Threads threads, const std::function<void(const Task&)>& visit) {
  const int64_t size = size_of(spans);
  const int64_t task_size = std::clamp(size / (kTasksPerThread * threads.count), kTaskSize, kMaxTaskSize);
  const int64_t count = cut(spans, task_size), most = task_size * count / std::max<int64_t>(1, size);
  const int64_t together = std::max<int64_t>(1, std::min<int64_t>(count / (8 * threads.count), most));
  const int64_t groups = (count + together - 1) / together;
  if (size < kWorthAThread) threads.count = 1;
  for_each_task(groups, threads, [&](int64_t group) {
    const int64_t last = std::min((group + 1) * together, count);
    for (int64_t t = group * together; t < last; ++t) visit(task_of(spans, t));
  });
}

int64_t chunk_size(const Problem& problem) {
  return std::min(pixels_per_chunk(problem), problem.pixels()) * problem.target.channels;
}

bool has_pixels(const Problem& problem) {
  return problem.batch > 0 && problem.pixels() > 0 && problem.source.channels > 0;
}

// Adds the chunks of a problem's target pixels, for each of `batch` items of its batch.
void add_chunks(std::vector<Span>& spans, Work work, const Problem& problem, size_t i, int64_t batch) {
  if (!has_pixels(problem)) return;
  spans.push_back({work, static_cast<int64_t>(i), batch, chunks(problem), chunk_size(problem)});
}

struct Pixels {
  int64_t first, last;
};

Pixels pixels_of(const Problem& problem, int64_t first_chunk, int64_t last_chunk) {
  const int64_t step = pixels_per_chunk(problem);
  return {first_chunk * step, std::min(last_chunk * step, problem.pixels())};
}

const Kernels& kernels_of(const InstructionSet& isa, const Problem& problem) {
  return isa.kernels[static_cast<int>(problem.storage)](problem.axes);
}

// Numbers that a chunk contributes to the gradient of parameters.
int64_t sums_of(const Problem& problem) {
  if (!problem.generator.is_linear()) return problem.generator.count;
  return (problem.generator.kind == Kind::homography ? 3 : problem.axes) * (problem.axes + 1);
}

// From the sums over all target pixels to the gradient of one set of parameters.
void finish_parameters(const Problem& problem, int64_t n, const double* sums) {
  const Generator& generator = problem.generator;
  double* out = problem.grad_parameters + n * generator.count;
  if (!generator.is_linear()) {
    std::copy(sums, sums + generator.count, out);
    return;
  }
  Matrix by_matrix{};
  const int rows = generator.kind == Kind::homography ? 3 : problem.axes;
  for (int a = 0; a < rows; ++a)
    for (int b = 0; b <= problem.axes; ++b) by_matrix.at[a][b] = sums[a * (problem.axes + 1) + b];
  pixel_matrix_adjoint(generator.kind, generator.lattice, generator.parameters + n * generator.count, by_matrix, out);
}

bool has_parameter_gradient(const Problem& problem) {
  return problem.grad_parameters != nullptr && problem.sampling.interpolation != Interpolation::nearest &&
         has_pixels(problem);
}

// The sums of one problem, over all chunks of an item or, where its items share their parameters, of the batch. They
// are added by a tree, of which a part is a branch: so many chunks, a power of two, that there are few parts, each of
// which has sums in memory.
struct Partials {
  std::vector<double> sums;  // of every part
  int64_t width, chunks, items, all_chunks, chunks_per_part = 1, parts;

  explicit Partials(const Problem& problem)
      : width(sums_of(problem)),
        chunks(stn::chunks(problem)),
        items(problem.generator.batch),
        all_chunks(items == 1 ? problem.batch * chunks : chunks) {
    while (chunks_per_part < all_chunks && chunks_per_part * kMaxParts < items * all_chunks) chunks_per_part *= 2;
    parts = (all_chunks + chunks_per_part - 1) / chunks_per_part;
    if (has_parameter_gradient(problem)) sums.assign(static_cast<size_t>(items * parts * width), 0.0);
  }

  double* at(int64_t n, int64_t part) { return sums.data() + (n * parts + part) * width; }
};

void add_parts(std::vector<Span>& spans, const Problem& problem, size_t i, const Partials& partials) {
  if (!has_parameter_gradient(problem)) return;
  spans.push_back({Work::parameter_sums, static_cast<int64_t>(i), partials.items, partials.parts,
                   chunk_size(problem) * partials.chunks_per_part});
}

void run_part(const Problem& problem, const Kernels& kernels, int64_t n, int64_t part, Partials& partials) {
  const int64_t first = part * partials.chunks_per_part;
  const int64_t count = std::min(partials.chunks_per_part, partials.all_chunks - first);
  add_tree(count, partials.width, partials.at(n, part), [&](int64_t k, double* sums) {
    const int64_t chunk = first + k, place = chunk % partials.chunks;
    const Pixels pixels = pixels_of(problem, place, place + 1);
    kernels.parameter_run(problem, n + chunk / partials.chunks, pixels.first, pixels.last, sums);
  });
}

void finish(const Problem& problem, Partials& partials) {
  std::vector<double> sums(static_cast<size_t>(partials.width));
  for (int64_t n = 0; n < partials.items; ++n) {
    add_tree(partials.parts, partials.width, sums.data(),
             [&](int64_t part, double* out) { std::copy_n(partials.at(n, part), partials.width, out); });
    finish_parameters(problem, n, sums.data());
  }
}

bool has_point_gradient(const Problem& problem) {
  return problem.grad_field.data != nullptr && problem.sampling.interpolation != Interpolation::nearest;
}

// Bands of a map's outermost axis: as many as threads can use, as few as possible.
int64_t bands(const Problem& problem, int threads) {
  const int64_t depth = problem.source.size[problem.axes - 1];
  return std::min<int64_t>(depth, (threads + problem.source.batch - 1) / problem.source.batch);
}

// Adds the tiles or bands of the gradient of a problem's map.
void add_map(std::vector<Span>& spans, const Problem& problem, size_t i, const Kernels& kernels, int threads) {
  if (problem.grad_feature_map.data == nullptr || !has_pixels(problem)) return;
  const int64_t tiles = kernels.tiles(problem);
  const int64_t units = tiles > 0 ? tiles : bands(problem, threads);
  const int64_t size = problem.pixels() * problem.target.channels * problem.batch;
  const int64_t batch = problem.source.batch;
  spans.push_back({Work::map, static_cast<int64_t>(i), batch, units, size / (units * batch) + 1});
}

void run_map(const Problem& problem, const Kernels& kernels, const Task& task, int threads) {
  const bool tiled = kernels.tiles(problem) > 0;
  const int64_t depth = problem.source.size[problem.axes - 1], count = bands(problem, threads);
  for (int64_t unit = task.first; unit < task.last; ++unit)
    if (tiled) kernels.tile(problem, task.n, unit);
    else kernels.band(problem, task.n, depth * unit / count, depth * (unit + 1) / count);
}

}  // namespace

void warp(const std::vector<Problem>& problems, const InstructionSet& isa, Threads threads) {
  std::vector<Span> spans;
  for (size_t i = 0; i < problems.size(); ++i) add_chunks(spans, Work::values, problems[i], i, problems[i].batch);
  run(spans, threads, [&](const Task& task) {
    const Problem& problem = problems[static_cast<size_t>(task.problem)];
    const Pixels pixels = pixels_of(problem, task.first, task.last);
    kernels_of(isa, problem).warp_run(problem, task.n, pixels.first, pixels.last);
  });
}

// All parts of all gradients are one pool of tasks: of a small call, each part alone would leave threads idle.
void warp_gradients(const std::vector<Problem>& problems, const InstructionSet& isa, Threads threads) {
  std::vector<Partials> partials(problems.begin(), problems.end());
  std::vector<Span> spans;
  for (size_t i = 0; i < problems.size(); ++i) {
    const Problem& problem = problems[i];
    add_map(spans, problem, i, kernels_of(isa, problem), threads.count);
    add_parts(spans, problem, i, partials[i]);
    if (has_point_gradient(problem)) add_chunks(spans, Work::points, problem, i, problem.grad_field.batch);
  }
  run(spans, threads, [&](const Task& task) {
    const Problem& problem = problems[static_cast<size_t>(task.problem)];
    const Kernels& kernels = kernels_of(isa, problem);
    if (task.work == Work::map) {
      run_map(problem, kernels, task, threads.count);
    } else if (task.work == Work::points) {
      const Pixels pixels = pixels_of(problem, task.first, task.last);
      kernels.field_run(problem, task.n, pixels.first, pixels.last);
    } else {
      for (int64_t part = task.first; part < task.last; ++part)
        run_part(problem, kernels, task.n, part, partials[static_cast<size_t>(task.problem)]);
    }
  });
  for (size_t i = 0; i < problems.size(); ++i)
    if (has_parameter_gradient(problems[i])) finish(problems[i], partials[i]);
}

}  // namespace stn
