// Sums that depend on nothing but what is added: by one tree, however its branches are shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace stn {

// Adds `count` vectors of sums by a fixed tree: neighbours first, then pairs of them, and so on. `add` adds the k-th to
// zeros; they are asked for in order, and no more than one on each level of the tree is in memory.
template <class Add>
void add_tree(int64_t count, int64_t width, double* out, Add add) {
  std::vector<double> levels;
  int64_t depth = 0;
  const auto join = [&] {
    --depth;
    for (int64_t s = 0; s < width; ++s) levels[(depth - 1) * width + s] += levels[depth * width + s];
  };
  for (int64_t k = 0; k < count; ++k) {
    levels.resize(static_cast<size_t>(depth * width));
    levels.resize(static_cast<size_t>(++depth * width), 0.0);
    add(k, levels.data() + (depth - 1) * width);
    for (int64_t done = k + 1; done % 2 == 0; done /= 2) join();
  }
  while (depth > 1) join();
  std::copy_n(levels.begin(), depth * width, out);
}

}  // namespace stn
