#include "schedule.h"

#include <algorithm>
#include <functional>

#include "pool.h"

namespace stn {
namespace {

// What there is to compute of an item: values, or the parts of a gradient.
enum class Work { values, parameter_sums, points, map };

// A run of equal units of work that belong to one item of a batch.
struct Span {
  Work work;
  int64_t item, n, units, unit_size;
};

struct Task {
  Work work;
  int64_t item, n, first, last;
};

// Cuts spans into tasks of similar size, never a unit apart.
std::vector<Task> cut(const std::vector<Span>& spans) {
  std::vector<Task> tasks;
  for (const Span& span : spans) {
    const int64_t step = std::max<int64_t>(1, kTaskSize / std::max<int64_t>(1, span.unit_size));
    for (int64_t first = 0; first < span.units; first += step)
      tasks.push_back({span.work, span.item, span.n, first, std::min(first + step, span.units)});
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

int64_t chunk_size(const Item& item) { return std::min(pixels_per_chunk(item), item.pixels()) * item.target.channels; }

bool has_pixels(const Item& item) { return item.batch > 0 && item.pixels() > 0 && item.source.channels > 0; }

// Adds the chunks of an item's target pixels, for each of `batch` items of its batch.
void add_chunks(std::vector<Span>& spans, Work work, const Item& item, size_t i, int64_t batch) {
  if (!has_pixels(item)) return;
  for (int64_t n = 0; n < batch; ++n)
    spans.push_back({work, static_cast<int64_t>(i), n, chunks(item), chunk_size(item)});
}

struct Pixels {
  int64_t first, last;
};

Pixels pixels_of(const Item& item, int64_t first_chunk, int64_t last_chunk) {
  const int64_t step = pixels_per_chunk(item);
  return {first_chunk * step, std::min(last_chunk * step, item.pixels())};
}

const Kernels& kernels_of(const InstructionSet& isa, const Item& item) {
  return isa.kernels[static_cast<int>(item.storage)](item.axes);
}

// Numbers that a chunk contributes to the gradient of parameters.
int64_t sums_of(const Item& item) {
  if (!item.generator.is_linear()) return item.generator.count;
  return (item.generator.kind == Kind::homography ? 3 : item.axes) * (item.axes + 1);
}

// The sum of `count` vectors of sums by a fixed tree, left in the first.
void join(double* sums, int64_t count, int64_t width) {
  for (int64_t reach = 1; reach < count; reach *= 2)
    for (int64_t k = 0; k + reach < count; k += 2 * reach)
      for (int64_t s = 0; s < width; ++s) sums[k * width + s] += sums[(k + reach) * width + s];
}

// From the sums over all target pixels to the gradient of one set of parameters.
void finish_parameters(const Item& item, int64_t n, const double* sums) {
  const Generator& generator = item.generator;
  double* out = item.by_parameters + n * generator.count;
  if (!generator.is_linear()) {
    std::copy(sums, sums + generator.count, out);
    return;
  }
  Matrix by_matrix{};
  const int rows = generator.kind == Kind::homography ? 3 : item.axes;
  for (int a = 0; a < rows; ++a)
    for (int b = 0; b <= item.axes; ++b) by_matrix.at[a][b] = sums[a * (item.axes + 1) + b];
  pixel_matrix_adjoint(generator.kind, generator.lattice, generator.parameters + n * generator.count, by_matrix, out);
}

bool has_parameter_gradient(const Item& item) {
  return item.by_parameters != nullptr && item.sampling.interpolation != Interpolation::nearest && has_pixels(item);
}

// Sums of all chunks of one item, (batch, chunks, width).
struct Partials {
  std::vector<double> sums;
  int64_t width, chunks;

  explicit Partials(const Item& item) : width(sums_of(item)), chunks(stn::chunks(item)) {
    if (has_parameter_gradient(item)) sums.assign(static_cast<size_t>(item.batch * chunks * width), 0.0);
  }

  double* at(int64_t n, int64_t chunk) { return sums.data() + (n * chunks + chunk) * width; }
};

void finish(const Item& item, Partials& partials) {
  const bool broadcast = item.generator.batch == 1;
  const int64_t count = broadcast ? item.batch * partials.chunks : partials.chunks;
  for (int64_t n = 0; n < item.generator.batch; ++n) {
    join(partials.at(n, 0), count, partials.width);
    finish_parameters(item, n, partials.at(n, 0));
  }
}

bool has_point_gradient(const Item& item) {
  return item.by_field.data != nullptr && item.sampling.interpolation != Interpolation::nearest;
}

// Bands of a map's outermost axis: as many as threads can use, as few as possible.
int64_t bands(const Item& item, int threads) {
  const int64_t depth = item.source.size[item.axes - 1];
  return std::min<int64_t>(depth, (threads + item.source.batch - 1) / item.source.batch);
}

// Adds the tiles or bands of the gradient of an item's map.
void add_map(std::vector<Span>& spans, const Item& item, size_t i, const Kernels& kernels, int threads) {
  if (item.by_source.data == nullptr || !has_pixels(item)) return;
  const int64_t tiles = kernels.tiles(item);
  const int64_t units = tiles > 0 ? tiles : bands(item, threads);
  const int64_t size = item.pixels() * item.target.channels * item.batch;
  for (int64_t n = 0; n < item.source.batch; ++n)
    spans.push_back({Work::map, static_cast<int64_t>(i), n, units, size / (units * item.source.batch) + 1});
}

void run_map(const Item& item, const Kernels& kernels, const Task& task, int threads) {
  const bool tiled = kernels.tiles(item) > 0;
  const int64_t depth = item.source.size[item.axes - 1], count = bands(item, threads);
  for (int64_t unit = task.first; unit < task.last; ++unit)
    if (tiled) kernels.tile(item, task.n, unit);
    else kernels.band(item, task.n, depth * unit / count, depth * (unit + 1) / count);
}

}  // namespace

void warp(const std::vector<Item>& items, const InstructionSet& isa, Threads threads) {
  std::vector<Span> spans;
  for (size_t i = 0; i < items.size(); ++i) add_chunks(spans, Work::values, items[i], i, items[i].batch);
  run(spans, threads, [&](const Task& task) {
    const Item& item = items[static_cast<size_t>(task.item)];
    const Pixels pixels = pixels_of(item, task.first, task.last);
    kernels_of(isa, item).warp_run(item, task.n, pixels.first, pixels.last);
  });
}

// All parts of all gradients are one pool of tasks: of a small call, each part alone would leave threads idle.
void warp_gradients(const std::vector<Item>& items, const InstructionSet& isa, Threads threads) {
  std::vector<Partials> partials(items.begin(), items.end());
  std::vector<Span> spans;
  for (size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    add_map(spans, item, i, kernels_of(isa, item), threads.count);
    if (has_parameter_gradient(item)) add_chunks(spans, Work::parameter_sums, item, i, item.batch);
    if (has_point_gradient(item)) add_chunks(spans, Work::points, item, i, item.by_field.batch);
  }
  run(spans, threads, [&](const Task& task) {
    const Item& item = items[static_cast<size_t>(task.item)];
    const Kernels& kernels = kernels_of(isa, item);
    if (task.work == Work::map) {
      run_map(item, kernels, task, threads.count);
    } else if (task.work == Work::points) {
      const Pixels pixels = pixels_of(item, task.first, task.last);
      kernels.field_run(item, task.n, pixels.first, pixels.last);
    } else {
      Partials& mine = partials[static_cast<size_t>(task.item)];
      for (int64_t chunk = task.first; chunk < task.last; ++chunk) {
        const Pixels pixels = pixels_of(item, chunk, chunk + 1);
        kernels.parameter_run(item, task.n, pixels.first, pixels.last, mine.at(task.n, chunk));
      }
    }
  });
  for (size_t i = 0; i < items.size(); ++i)
    if (has_parameter_gradient(items[i])) finish(items[i], partials[i]);
}

}  // namespace stn
