// Layouts of tensors as kernels see them: storage types, shapes and strides, checked; no data.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"

namespace stn {

namespace nb = nanobind;

[[noreturn]] inline void fail(const char* where, const std::string& expected, const std::string& got) {
  throw nb::value_error((std::string(where) + ": expected " + expected + ", got " + got + ".").c_str());
}

[[noreturn]] inline void fail_type(const char* where, const char* expected, nb::handle object) {
  const std::string got = nb::str(object.type().attr("__name__")).c_str();
  throw nb::type_error((std::string(where) + ": expected " + expected + ", got " + got + ".").c_str());
}

inline int64_t bytes_of(Storage storage) {
  switch (storage) {
    case Storage::float64:
    case Storage::int64: return 8;
    case Storage::float32:
    case Storage::int32: return 4;
    case Storage::uint8: return 1;
    default: return 2;
  }
}

inline bool is_float(Storage storage) {
  switch (storage) {
    case Storage::float32:
    case Storage::float64:
    case Storage::float16:
    case Storage::bfloat16: return true;
    default: return false;
  }
}

// Numbers that no float32 holds; they are moved, and never computed with.
inline bool is_label(Storage storage) { return storage == Storage::int32 || storage == Storage::int64; }

// What a tensor is but for its memory. Strides are in elements.
struct Layout {
  Storage storage;
  std::vector<int64_t> shape, strides;

  Layout(Storage the_storage, std::vector<int64_t> the_shape, std::vector<int64_t> the_strides)
      : storage(the_storage), shape(std::move(the_shape)), strides(std::move(the_strides)) {
    if (shape.size() != strides.size())
      fail("strides", std::to_string(shape.size()) + " of them", std::to_string(strides.size()));
    int64_t numbers = 1;  // of all axes but empty ones, so that no product of some of them overflows
    for (int64_t size : shape) {
      if (size < 0) fail("shape", "sizes of at least 0", std::to_string(size));
      if (size > 0 && __builtin_mul_overflow(numbers, size, &numbers)) fail("shape", "fewer than 2^63 numbers", text());
    }
  }

  size_t axes() const { return shape.size(); }

  // A stride that no index ever multiplies is free; 1 is as good as any.
  int64_t stride(size_t axis) const { return shape[axis] > 1 ? strides[axis] : 1; }

  // Whether every place between the first and the last number holds one number: contiguous in some order of axes.
  bool is_dense() const {
    std::vector<std::pair<int64_t, int64_t>> axes;
    for (size_t a = 0; a < shape.size(); ++a) {
      if (shape[a] == 0) return true;
      if (shape[a] > 1) axes.emplace_back(strides[a], shape[a]);
    }
    std::sort(axes.begin(), axes.end());
    int64_t numbers = 1;
    for (const auto& [stride, size] : axes) {
      if (stride != numbers) return false;
      numbers *= size;
    }
    return true;
  }

  // Row by row, and dense.
  bool is_contiguous() const {
    int64_t numbers = 1;
    for (size_t a = shape.size(); a-- > 0; numbers *= std::max<int64_t>(1, shape[a]))
      if (shape[a] > 1 && strides[a] != numbers) return false;
    return true;
  }

  std::string text() const {
    std::string text = "(";
    for (size_t a = 0; a < shape.size(); ++a) text += (a ? ", " : "") + std::to_string(shape[a]);
    return text + ")";
  }
};

// Whether parameters are float64; float32 is the other choice.
inline bool is_wide(const char* where, const Layout& layout) {
  const Storage storage = layout.storage;
  if (storage != Storage::float32 && storage != Storage::float64) fail(where, "float32 or float64", "another dtype");
  return storage == Storage::float64;
}

// Kernels write to memory that has one place for each number.
inline void require_dense(const char* where, const Layout& layout) {
  if (!layout.is_dense()) fail(where, "dense memory", "gaps, overlaps or negative strides");
}

// Whether pixels in raster order are evenly spaced in memory. Free strides become such that they are, if they can be,
// and the first one says how far apart.
inline bool fit_strides(const int64_t (&size)[kMaxAxes], int64_t (&stride)[kMaxAxes]) {
  int64_t next = 1;
  for (int a = kMaxAxes; a-- > 0;)
    if (size[a] > 1) next = stride[a];
  bool even = true;
  for (int a = 0; a < kMaxAxes; ++a) {
    if (size[a] <= 1) stride[a] = next;
    even &= stride[a] == next && !__builtin_mul_overflow(stride[a], size[a], &next);
  }
  return even;
}

// (N, C, D, H, W) or (N, C, H, W), axes turned into the order x, y, z; no data yet.
inline Map map_of(const char* where, const Layout& layout, int axes) {
  if (layout.axes() != static_cast<size_t>(axes) + 2) fail(where, std::to_string(axes + 2) + " axes", layout.text());
  Map map{};
  map.batch = layout.shape[0];
  map.channels = layout.shape[1];
  map.batch_stride = layout.stride(0);
  map.channel_stride = layout.stride(1);
  for (int a = 0; a < kMaxAxes; ++a) {
    const size_t axis = static_cast<size_t>(axes + 1 - a);
    map.size[a] = a < axes ? layout.shape[axis] : 1;
    map.stride[a] = a < axes ? layout.stride(axis) : 1;
    if (map.size[a] > std::numeric_limits<int32_t>::max()) fail(where, "axes shorter than 2^31", layout.text());
  }
  map.even = fit_strides(map.size, map.stride);
  return map;
}

// (N, Ho, Wo, 2) or (N, Do, Ho, Wo, 3), axes turned into the order x, y, z; no data yet.
inline PointField field_of(const char* where, const Layout& layout, int axes, const Map& target) {
  bool fits = layout.axes() == static_cast<size_t>(axes) + 2 && layout.shape.back() == axes;
  for (int a = 0; fits && a < axes; ++a) fits = layout.shape[static_cast<size_t>(axes - a)] == target.size[a];
  if (!fits) fail(where, "one point per target pixel", layout.text());
  PointField field{};
  field.wide = is_wide(where, layout);
  field.batch = layout.shape[0];
  field.batch_stride = layout.stride(0);
  field.component_stride = layout.stride(layout.axes() - 1);
  for (int a = 0; a < kMaxAxes; ++a) field.stride[a] = a < axes ? layout.stride(static_cast<size_t>(axes - a)) : 1;
  field.even = fit_strides(target.size, field.stride);
  return field;
}

// Visits the numbers of (N, ...) parameters of up to two more axes, in row-major order.
template <class P, class F>
inline void visit_numbers(const Layout& layout, void* memory, F visit) {
  P* data = static_cast<P*>(memory);
  const bool has_columns = layout.axes() == 3;
  const int64_t columns = has_columns ? layout.shape[2] : 1, column_stride = has_columns ? layout.strides[2] : 0;
  for (int64_t n = 0; n < layout.shape[0]; ++n)
    for (int64_t r = 0; r < layout.shape[1]; ++r)
      for (int64_t c = 0; c < columns; ++c)
        visit(data[n * layout.strides[0] + r * layout.strides[1] + c * column_stride]);
}

template <class F>
inline void visit_parameters(const Layout& layout, void* memory, F visit) {
  if (layout.storage == Storage::float64) visit_numbers<double>(layout, memory, visit);
  else visit_numbers<float>(layout, memory, visit);
}

}  // namespace stn
