#include "schedule.h"

#include <algorithm>
#include <functional>

#include "pool.h"

namespace stn {
namespace {

// Smaller calls are done before a second thread is awake.
constexpr int64_t kWorthAThread = 1 << 14;
// So many numbers a task: small enough to share well, large enough to hide the taking of it.
constexpr int64_t kTaskSize = 1 << 14;

// A run of equal units of work that belong to one item of a batch.
struct Span {
  int64_t item, n, units, unit_size;
};

struct Task {
  int64_t item, n, first, last;
};

// Cuts spans into tasks of similar size, never a unit apart.
std::vector<Task> cut(const std::vector<Span>& spans) {
  std::vector<Task> tasks;
  for (const Span& span : spans) {
    const int64_t step = std::max<int64_t>(1, kTaskSize / std::max<int64_t>(1, span.unit_size));
    for (int64_t first = 0; first < span.units; first += step)
      tasks.push_back({span.item, span.n, first, std::min(first + step, span.units)});
  }
  return tasks;
}

int64_t size_of(const std::vector<Span>& spans) {
  int64_t size = 0;
  for (const Span& span : spans) size += span.units * span.unit_size;
  return size;
}

// Runs the tasks of a call; neighbouring ones together, if there are very many.
void run(const std::vector<Span>& spans, int threads, const std::function<void(const Task&)>& visit) {
  const std::vector<Task> tasks = cut(spans);
  const int64_t count = static_cast<int64_t>(tasks.size()), size = size_of(spans);
  const int64_t together =
      std::max<int64_t>(1, std::min<int64_t>(count / (8 * threads), kTaskSize * count / std::max<int64_t>(1, size)));
  const int64_t groups = (count + together - 1) / together;
  for_each_task(groups, size < kWorthAThread ? 1 : threads, [&](int64_t group) {
    const int64_t last = std::min((group + 1) * together, count);
    for (int64_t t = group * together; t < last; ++t) visit(tasks[static_cast<size_t>(t)]);
  });
}

int64_t chunk_size(const Item& item) { return std::min(pixels_per_chunk(item), item.pixels()) * item.target.channels; }

bool has_pixels(const Item& item) { return item.batch > 0 && item.pixels() > 0 && item.source.channels > 0; }

// Chunks of the target's pixels of every item of every batch.
std::vector<Span> chunk_spans(const std::vector<Item>& items, const std::function<int64_t(const Item&)>& batch_of) {
  std::vector<Span> spans;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!has_pixels(items[i])) continue;
    for (int64_t n = 0; n < batch_of(items[i]); ++n)
      spans.push_back({static_cast<int64_t>(i), n, chunks(items[i]), chunk_size(items[i])});
  }
  return spans;
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

void parameter_gradients(const std::vector<Item>& items, const InstructionSet& isa, int threads) {
  std::vector<Partials> partials(items.begin(), items.end());
  const auto batch_of = [](const Item& item) { return has_parameter_gradient(item) ? item.batch : 0; };
  run(chunk_spans(items, batch_of), threads, [&](const Task& task) {
    const Item& item = items[static_cast<size_t>(task.item)];
    Partials& mine = partials[static_cast<size_t>(task.item)];
    for (int64_t chunk = task.first; chunk < task.last; ++chunk) {
      const Pixels pixels = pixels_of(item, chunk, chunk + 1);
      kernels_of(isa, item).parameter_run(item, task.n, pixels.first, pixels.last, mine.at(task.n, chunk));
    }
  });
  for (size_t i = 0; i < items.size(); ++i)
    if (has_parameter_gradient(items[i])) finish(items[i], partials[i]);
}

void field_gradients(const std::vector<Item>& items, const InstructionSet& isa, int threads) {
  const auto batch_of = [](const Item& item) {
    const bool needed = item.by_field.data != nullptr && item.sampling.interpolation != Interpolation::nearest;
    return needed ? item.by_field.batch : 0;
  };
  run(chunk_spans(items, batch_of), threads, [&](const Task& task) {
    const Item& item = items[static_cast<size_t>(task.item)];
    const Pixels pixels = pixels_of(item, task.first, task.last);
    kernels_of(isa, item).field_run(item, task.n, pixels.first, pixels.last);
  });
}

// Bands of a map's outermost axis: as many as threads can use, as few as possible.
int64_t bands(const Item& item, int threads) {
  const int64_t depth = item.source.size[item.axes - 1];
  return std::min<int64_t>(depth, (threads + item.source.batch - 1) / item.source.batch);
}

void map_gradients(const std::vector<Item>& items, const InstructionSet& isa, int threads) {
  std::vector<Span> spans;
  for (size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    if (item.by_source.data == nullptr || !has_pixels(item)) continue;
    const int64_t tiles = kernels_of(isa, item).tiles(item);
    const int64_t units = tiles > 0 ? tiles : bands(item, threads);
    const int64_t size = item.pixels() * item.target.channels * item.batch;
    for (int64_t n = 0; n < item.source.batch; ++n)
      spans.push_back({static_cast<int64_t>(i), n, units, size / (units * item.source.batch) + 1});
  }
  run(spans, threads, [&](const Task& task) {
    const Item& item = items[static_cast<size_t>(task.item)];
    const Kernels& kernels = kernels_of(isa, item);
    const bool tiled = kernels.tiles(item) > 0;
    const int64_t depth = item.source.size[item.axes - 1], count = bands(item, threads);
    for (int64_t unit = task.first; unit < task.last; ++unit)
      if (tiled) kernels.tile(item, task.n, unit);
      else kernels.band(item, task.n, depth * unit / count, depth * (unit + 1) / count);
  });
}

}  // namespace

void warp(const std::vector<Item>& items, const InstructionSet& isa, int threads) {
  run(chunk_spans(items, [](const Item& item) { return item.batch; }), threads, [&](const Task& task) {
    const Item& item = items[static_cast<size_t>(task.item)];
    const Pixels pixels = pixels_of(item, task.first, task.last);
    kernels_of(isa, item).warp_run(item, task.n, pixels.first, pixels.last);
  });
}

void warp_gradients(const std::vector<Item>& items, const InstructionSet& isa, int threads) {
  parameter_gradients(items, isa, threads);
  field_gradients(items, isa, threads);
  map_gradients(items, isa, threads);
}

}  // namespace stn
