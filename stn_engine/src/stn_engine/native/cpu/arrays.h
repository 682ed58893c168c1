// Arrays of Python as the kernels see them: dtypes, shapes and strides, checked.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "item.h"

namespace stn {

namespace nb = nanobind;

using Array = nb::ndarray<nb::device::cpu>;

[[noreturn]] inline void fail(const char* where, const std::string& expected, const std::string& got) {
  throw nb::value_error((std::string(where) + ": expected " + expected + ", got " + got + ".").c_str());
}

[[noreturn]] inline void fail_type(const char* where, const char* expected, nb::handle object) {
  const std::string got = nb::str(object.type().attr("__name__")).c_str();
  throw nb::type_error((std::string(where) + ": expected " + expected + ", got " + got + ".").c_str());
}

template <class T>
T cast(const char* where, const char* expected, nb::handle object) {
  T value;
  if (!nb::try_cast<T>(object, value)) fail_type(where, expected, object);
  return value;
}

inline std::string shape_of(const Array& array) {
  std::string text = "(";
  for (size_t a = 0; a < array.ndim(); ++a) text += (a ? ", " : "") + std::to_string(array.shape(a));
  return text + ")";
}

inline bool has_dtype(const Array& array, nb::dlpack::dtype_code code, int bits) {
  return array.dtype().code == static_cast<uint8_t>(code) && array.dtype().bits == bits && array.dtype().lanes == 1;
}

inline Storage storage_of(const char* where, const Array& array) {
  using Code = nb::dlpack::dtype_code;
  if (has_dtype(array, Code::Float, 32)) return Storage::float32;
  if (has_dtype(array, Code::Float, 64)) return Storage::float64;
  if (has_dtype(array, Code::Float, 16)) return Storage::float16;
  if (has_dtype(array, Code::Bfloat, 16)) return Storage::bfloat16;
  if (has_dtype(array, Code::UInt, 8)) return Storage::uint8;
  fail(where, "float32, float64, float16, bfloat16 or uint8", "another dtype");
}

inline nb::dlpack::dtype dtype_of(Storage storage) {
  using Code = nb::dlpack::dtype_code;
  const auto dtype = [](Code code, uint8_t bits) { return nb::dlpack::dtype{static_cast<uint8_t>(code), bits, 1}; };
  switch (storage) {
    case Storage::float32: return dtype(Code::Float, 32);
    case Storage::float64: return dtype(Code::Float, 64);
    case Storage::float16: return dtype(Code::Float, 16);
    case Storage::bfloat16: return dtype(Code::Bfloat, 16);
    default: return dtype(Code::UInt, 8);
  }
}

// Whether parameters are float64; float32 is the other choice.
inline bool is_wide(const char* where, const Array& array) {
  const Storage storage = storage_of(where, array);
  if (storage != Storage::float32 && storage != Storage::float64) fail(where, "float32 or float64", "another dtype");
  return storage == Storage::float64;
}

// A stride that no index ever multiplies is free; 1 is as good as any.
inline int64_t stride_of(const Array& array, size_t axis) { return array.shape(axis) > 1 ? array.stride(axis) : 1; }

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

// (N, C, D, H, W) or (N, C, H, W), axes turned into the order x, y, z.
inline Map map_of(const char* where, const Array& array, int axes) {
  if (array.ndim() != static_cast<size_t>(axes) + 2) fail(where, std::to_string(axes + 2) + " axes", shape_of(array));
  Map map{};
  map.data = array.data();
  map.batch = static_cast<int64_t>(array.shape(0));
  map.channels = static_cast<int64_t>(array.shape(1));
  map.batch_stride = stride_of(array, 0);
  map.channel_stride = stride_of(array, 1);
  for (int a = 0; a < kMaxAxes; ++a) {
    const size_t axis = static_cast<size_t>(axes + 1 - a);
    map.size[a] = a < axes ? static_cast<int64_t>(array.shape(axis)) : 1;
    map.stride[a] = a < axes ? stride_of(array, axis) : 1;
    if (map.size[a] > std::numeric_limits<int32_t>::max()) fail(where, "axes shorter than 2^31", shape_of(array));
  }
  map.even = fit_strides(map.size, map.stride);
  return map;
}

inline void require_same(const char* where, const Map& map, const Map& like, const Array& array) {
  bool same = map.batch == like.batch && map.channels == like.channels;
  for (int a = 0; a < kMaxAxes; ++a) same &= map.size[a] == like.size[a];
  if (!same) fail(where, "the shape of the operand it belongs to", shape_of(array));
}

// Memory that kernels write to has one place per number: in some order of axes it is contiguous.
inline void require_dense(const char* where, const Array& array) {
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (size_t a = 0; a < array.ndim(); ++a) {
    if (array.shape(a) == 0) return;
    if (array.shape(a) > 1) axes.emplace_back(array.stride(a), static_cast<int64_t>(array.shape(a)));
  }
  std::sort(axes.begin(), axes.end());
  int64_t numbers = 1;
  for (const auto& [stride, size] : axes) {
    if (stride != numbers) fail(where, "dense memory", "gaps, overlaps or negative strides");
    numbers *= size;
  }
}

inline PointField field_of(const char* where, const Array& array, int axes, const Map& target) {
  bool fits =
      array.ndim() == static_cast<size_t>(axes) + 2 && array.shape(array.ndim() - 1) == static_cast<size_t>(axes);
  for (int a = 0; fits && a < axes; ++a)
    fits = static_cast<int64_t>(array.shape(static_cast<size_t>(axes - a))) == target.size[a];
  if (!fits) fail(where, "one point per target pixel", shape_of(array));
  PointField field{};
  field.data = array.data();
  field.wide = is_wide(where, array);
  field.batch = static_cast<int64_t>(array.shape(0));
  field.batch_stride = stride_of(array, 0);
  field.component_stride = stride_of(array, array.ndim() - 1);
  for (int a = 0; a < kMaxAxes; ++a) field.stride[a] = a < axes ? stride_of(array, static_cast<size_t>(axes - a)) : 1;
  field.even = fit_strides(target.size, field.stride);
  return field;
}

// Visits the numbers of a (N, ...) array of up to two more axes, in row-major order.
template <class P, class F>
inline void visit_numbers(const Array& array, F visit) {
  P* data = static_cast<P*>(array.data());
  const size_t rows = array.shape(1), columns = array.ndim() == 3 ? array.shape(2) : 1;
  const int64_t column_stride = array.ndim() == 3 ? array.stride(2) : 0;
  for (size_t n = 0; n < array.shape(0); ++n)
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = 0; c < columns; ++c)
        visit(data[static_cast<int64_t>(n) * array.stride(0) + static_cast<int64_t>(r) * array.stride(1) +
                   static_cast<int64_t>(c) * column_stride]);
}

template <class F>
inline void visit_parameters(const Array& array, bool wide, F visit) {
  if (wide) visit_numbers<double>(array, visit);
  else visit_numbers<float>(array, visit);
}

}  // namespace stn
