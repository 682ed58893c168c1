// Problems that were read once and are computed on the bytes of many calls.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "items.h"
#include "schedule.h"

namespace stn {

// Bytes that a Python object lends, as long as this lives.
class Bytes {
 public:
  Bytes(const char* where, nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) {
      PyErr_Clear();
      fail_type(where, "contiguous bytes", object);
    }
  }
  Bytes(const Bytes&) = delete;
  Bytes(Bytes&& other) noexcept : view_(std::exchange(other.view_, {})), copy_(std::move(other.copy_)) {}
  ~Bytes() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }

  int64_t size() const { return view_.len; }

  // Where numbers of so many bytes can be read: elsewhere, if they do not lie at a multiple of that.
  void* aligned(size_t itemsize) {
    if (reinterpret_cast<uintptr_t>(view_.buf) % itemsize == 0) return view_.buf;
    copy_.reset(new std::byte[static_cast<size_t>(view_.len)]);
    std::memcpy(copy_.get(), view_.buf, static_cast<size_t>(view_.len));
    return copy_.get();
  }

 private:
  Py_buffer view_{};
  std::unique_ptr<std::byte[]> copy_;
};

// How many bytes a dense array takes.
struct Extent {
  int64_t bytes = 0;
  size_t itemsize = 1;

  Extent() = default;
  Extent(const char* where, const Array& array) : itemsize(static_cast<size_t>(array.dtype().bits / 8)) {
    bytes = static_cast<int64_t>(itemsize);
    for (size_t a = 0; a < array.ndim(); ++a)
      if (__builtin_mul_overflow(bytes, static_cast<int64_t>(array.shape(a)), &bytes))
        fail(where, "fewer than 2^63 bytes", shape_of(array));
    require_dense(where, array);
  }
};

// Items of one call that are computed on bytes; results are bytes of its own.
class Computation {
 public:
  explicit Computation(size_t count) {
    bytes_.reserve(3 * count);
    numbers_.reserve(2 * count);
    warps.reserve(count);
    gradients.reserve(count);
  }

  std::vector<Item> warps, gradients;

  void* read(const char* where, nb::handle object, const Extent& extent) {
    Bytes& bytes = bytes_.emplace_back(where, object);
    if (bytes.size() != extent.bytes)
      fail(where, std::to_string(extent.bytes) + " bytes", std::to_string(bytes.size()));
    return bytes.aligned(extent.itemsize);
  }

  double* numbers(int64_t count) { return numbers_.emplace_back(static_cast<size_t>(count)).data(); }

  // Numbers that are rounded, once, into a result.
  void round_later(const double* from, int64_t count, void* to, bool wide) {
    roundings_.push_back({from, count, to, wide});
  }

  void round() const {
    for (const Rounding& one : roundings_)
      for (int64_t i = 0; i < one.count; ++i) {
        if (one.wide) static_cast<double*>(one.to)[i] = one.from[i];
        else static_cast<float*>(one.to)[i] = static_cast<float>(one.from[i]);
      }
  }

 private:
  struct Rounding {
    const double* from;
    int64_t count;
    void* to;
    bool wide;
  };

  std::vector<Bytes> bytes_;
  std::vector<std::vector<double>> numbers_;
  std::vector<Rounding> roundings_;
};

// New bytes that nobody has seen yet, so that they may still be written.
inline nb::bytes new_bytes(int64_t size) {
  PyObject* object = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
  if (object == nullptr) throw nb::python_error();
  return nb::steal<nb::bytes>(object);
}

inline void* memory_of(const nb::bytes& bytes) { return PyBytes_AS_STRING(bytes.ptr()); }

// An item without its memory: what is read and written, and how many bytes that takes.
class Form {
 public:
  Form(nb::object options, Kind kind, nb::handle feature_map, nb::handle parameters, nb::handle target)
      : options_(std::move(options)) {
    Call call(1, Arrays::absent);
    item_ = read_item(call, options_of(options_), kind, feature_map, parameters, nb::none(), target);
    map_ = Extent("feature_map", call.arrays[0]);
    target_ = Extent("output", call.arrays[1]);
    parameters_ = Extent("parameters", call.arrays[2]);
    require_row_major(call.arrays[2]);
    wide_ = parameters_.itemsize == sizeof(double);
  }

  // The gradients of U and of the parameters, where they are needed.
  void differentiate(bool by_feature_map, bool by_parameters) {
    if (item_.storage == Storage::uint8) fail("feature_map", "a float dtype", "uint8");
    is_gradient_ = true, by_map_ = by_feature_map, by_parameters_ = by_parameters;
  }

  // Adds an item on the bytes of a call: V's (feature_map, parameters), or, of gradients, (grad_output, ...).
  // Returns the bytes of its results, which are there when it is computed.
  nb::tuple add(Computation& to, const nb::tuple& call) const {
    const size_t operands = is_gradient_ ? 3 : 2;
    if (call.size() != 1 + operands)
      fail("call", std::to_string(1 + operands) + " entries", std::to_string(call.size()));
    std::vector<Item>& items = is_gradient_ ? to.gradients : to.warps;
    Item& item = items.emplace_back(item_);
    if (is_gradient_) item.target.data = to.read("grad_output", call[1], target_);
    item.source.data = to.read("feature_map", call[operands - 1], map_);
    place(item, to, to.read("parameters", call[operands], parameters_));
    return is_gradient_ ? gradients_of(item, to) : outputs_of(item);
  }

 private:
  void require_row_major(const Array& array) const {
    if (parameters_.bytes == 0) return;
    int64_t numbers = 1;
    for (size_t a = array.ndim(); a-- > 0; numbers *= static_cast<int64_t>(array.shape(a)))
      if (array.shape(a) > 1 && array.stride(a) != numbers) fail("parameters", "row-major order", "strides");
  }

  void place(Item& item, Computation& to, void* parameters) const {
    Generator& generator = item.generator;
    if (generator.is_pointwise()) {
      generator.field.data = parameters;
      return;
    }
    const int64_t count = generator.batch * generator.count;
    double* numbers = to.numbers(count);
    if (wide_) std::copy_n(static_cast<const double*>(parameters), count, numbers);
    else std::copy_n(static_cast<const float*>(parameters), count, numbers);
    generator.parameters = numbers;
  }

  nb::tuple outputs_of(Item& item) const {
    nb::bytes output = new_bytes(target_.bytes);
    item.target.data = memory_of(output);
    return nb::make_tuple(output);
  }

  nb::tuple gradients_of(Item& item, Computation& to) const {
    nb::list gradients;
    if (by_map_) {
      nb::bytes gradient = new_bytes(map_.bytes);
      item.by_source = item.source;
      item.by_source.data = memory_of(gradient);
      if (target_.bytes == 0) std::memset(item.by_source.data, 0, static_cast<size_t>(map_.bytes));
      gradients.append(gradient);
    }
    if (by_parameters_) {
      nb::bytes gradient = new_bytes(parameters_.bytes);
      write_parameter_gradient(item, to, memory_of(gradient));
      gradients.append(gradient);
    }
    return nb::tuple(gradients);
  }

  void write_parameter_gradient(Item& item, Computation& to, void* gradient) const {
    const Generator& generator = item.generator;
    if (!generator.is_pointwise()) {
      const int64_t count = generator.batch * generator.count;
      item.by_parameters = to.numbers(count);
      to.round_later(item.by_parameters, count, gradient, wide_);
      return;
    }
    item.by_field = generator.field;
    item.by_field.data = gradient;
    const bool flat = target_.bytes == 0 || item.sampling.interpolation == Interpolation::nearest;
    if (flat) std::memset(gradient, 0, static_cast<size_t>(parameters_.bytes));
  }

  nb::object options_;  // has the fill values
  Item item_{};
  Extent map_, parameters_, target_;
  bool wide_ = false;  // parameters are float64
  bool is_gradient_ = false, by_map_ = false, by_parameters_ = false;
};

}  // namespace stn
