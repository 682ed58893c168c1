#include "schedule.h"

#include <algorithm>
#include <functional>

#include "pool.h"

namespace stn {
namespace {

// What there is to compute of a problem: values, or the parts of a gradient.
enum class Work { values, parameter_sums, points, map };

// A run of equal units of work that belong to one item of a problem's batch.
struct Span {
  Work work;
  int64_t problem, n, units, unit_size;
};

struct Task {
  Work work;
  int64_t problem, n, first, last;
};

// Cuts spans into tasks of similar size, never a unit apart.
std::vector<Task> cut(const std::vector<Span>& spans) {
  std::vector<Task> tasks;
  for (const Span& span : spans) {
    const int64_t step = std::max<int64_t>(1, kTaskSize / std::max<int64_t>(1, span.unit_size));
    for (int64_t first = 0; first < span.units; first += step)
      tasks.push_back({span.work, span.problem, span.n, first, std::min(first + step, span.units)});
  }
  return tasks;
}

int64_t size_of(const std::vector<Span>& spans) {
  int64_t size = 0;
  for (const Span& span : spans) size += span.units * span.unit_size;
  return size;
}

// Runs the tasks of a call; neighbouring ones together, if there are very many.
void run(const std::vector<Span>& spans, Threads threads, const std::function<void(const Task&)>& visit) {
  const std::vector<Task> tasks = cut(spans);
  const int64_t count = static_cast<int64_t>(tasks.size()), size = size_of(spans);
  const int64_t most = kTaskSize * count / std::max<int64_t>(1, size);
  const int64_t together = std::max<int64_t>(1, std::min<int64_t>(count / (8 * threads.count), most));
  const int64_t groups = (count + together - 1) / together;
  if (size < kWorthAThread) threads.count = 1;
  for_each_task(groups, threads, [&](int64_t group) {
    const int64_t last = std::min((group + 1) * together, count);
    for (int64_t t = group * together; t < last; ++t) visit(tasks[static_cast<size_t>(t)]);
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
  for (int64_t n = 0; n < batch; ++n)
    spans.push_back({work, static_cast<int64_t>(i), n, chunks(problem), chunk_size(problem)});
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

// The sum of `count` vectors of sums by a fixed tree, left in the first.
void join(double* sums, int64_t count, int64_t width) {
  for (int64_t reach = 1; reach < count; reach *= 2)
    for (int64_t k = 0; k + reach < count; k += 2 * reach)
      for (int64_t s = 0; s < width; ++s) sums[k * width + s] += sums[(k + reach) * width + s];
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

// Sums of all chunks of one problem, (batch, chunks, width).
struct Partials {
  std::vector<double> sums;
  int64_t width, chunks;

  explicit Partials(const Problem& problem) : width(sums_of(problem)), chunks(stn::chunks(problem)) {
    if (has_parameter_gradient(problem)) sums.assign(static_cast<size_t>(problem.batch * chunks * width), 0.0);
  }

  double* at(int64_t n, int64_t chunk) { return sums.data() + (n * chunks + chunk) * width; }
};

void finish(const Problem& problem, Partials& partials) {
  const bool broadcast = problem.generator.batch == 1;
  const int64_t count = broadcast ? problem.batch * partials.chunks : partials.chunks;
  for (int64_t n = 0; n < problem.generator.batch; ++n) {
    join(partials.at(n, 0), count, partials.width);
    finish_parameters(problem, n, partials.at(n, 0));
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
  for (int64_t n = 0; n < problem.source.batch; ++n)
    spans.push_back({Work::map, static_cast<int64_t>(i), n, units, size / (units * problem.source.batch) + 1});
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
    if (has_parameter_gradient(problem)) add_chunks(spans, Work::parameter_sums, problem, i, problem.batch);
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
      Partials& mine = partials[static_cast<size_t>(task.problem)];
      for (int64_t chunk = task.first; chunk < task.last; ++chunk) {
        const Pixels pixels = pixels_of(problem, chunk, chunk + 1);
        kernels.parameter_run(problem, task.n, pixels.first, pixels.last, mine.at(task.n, chunk));
      }
    }
  });
  for (size_t i = 0; i < problems.size(); ++i)
    if (has_parameter_gradient(problems[i])) finish(problems[i], partials[i]);
}

}  // namespace stn
