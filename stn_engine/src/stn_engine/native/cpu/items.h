// Items as Python hands them over, and what of them has to live as long as a call.
#pragma once

#include <string>
#include <vector>

#include "arrays.h"

namespace stn {

// The options of a warp; lives as long as Python keeps it.
struct Options {
  Interpolation interpolation;
  Padding padding;
  Unit unit;
  bool zero_subgradient;
  std::vector<double> fill;

  Sampling sampling() const {
    return {interpolation, padding, unit, zero_subgradient, fill.data(), static_cast<int64_t>(fill.size())};
  }
};

inline const Options& options_of(nb::handle object) {
  if (!nb::isinstance<Options>(object)) fail_type("options", "Options", object);
  return nb::cast<const Options&>(object);
}

// What an array would be: its dtype, shape and strides.
class Layout {
 public:
  Layout(Storage storage, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    if (shape.size() != strides.size())
      fail("strides", std::to_string(shape.size()) + " of them", std::to_string(strides.size()));
    for (int64_t size : shape)
      if (size < 0) fail("shape", "sizes of at least 0", std::to_string(size));
    const std::vector<size_t> sizes(shape.begin(), shape.end());
    array_ = Array(nullptr, sizes.size(), sizes.data(), nb::handle(), strides.data(), dtype_of(storage));
  }

  const Array& array() const { return array_; }

 private:
  Array array_;
};

// Whether the arrays of a call are there, or only their layouts.
enum class Arrays { present, absent };

// An item, and the Python objects and numbers that it points to.
struct Call {
  std::vector<Item> items;
  std::vector<Array> arrays;
  std::vector<std::vector<double>> numbers;
  struct Result {
    size_t numbers, array;
    bool wide;
  };
  std::vector<Result> results;  // gradients of parameters, still to be rounded into their arrays

  const Arrays kind;

  explicit Call(size_t count, Arrays the_kind = Arrays::present) : kind(the_kind) {
    items.reserve(count);
    arrays.reserve(6 * count);
    numbers.reserve(2 * count);
  }

  const Array& hold(const char* where, nb::handle object) {
    if (kind == Arrays::present) arrays.push_back(cast<Array>(where, "a writable array in host memory", object));
    else if (nb::isinstance<Layout>(object)) arrays.push_back(nb::cast<const Layout&>(object).array());
    else fail_type(where, "a Layout", object);
    return arrays.back();
  }
};

inline void read_numbers(Call& call, const Array& array, Generator& generator) {
  if (array.ndim() < 2 || array.ndim() > 3) fail("parameters", "two or three axes", shape_of(array));
  generator.batch = static_cast<int64_t>(array.shape(0));
  generator.count = static_cast<int64_t>(array.shape(1) * (array.ndim() == 3 ? array.shape(2) : 1));
  const bool wide = is_wide("parameters", array);
  if (call.kind == Arrays::absent) return;
  std::vector<double>& numbers = call.numbers.emplace_back();
  numbers.reserve(static_cast<size_t>(generator.batch * generator.count));
  visit_parameters(array, wide, [&](auto value) { numbers.push_back(static_cast<double>(value)); });
  generator.parameters = numbers.data();
}

inline void read_basis(Call& call, nb::handle object, Generator& generator, const Map& target) {
  const Array& basis = call.hold("basis", object);
  const bool fits = basis.ndim() == 2 && has_dtype(basis, nb::dlpack::dtype_code::Float, 64) &&
                    static_cast<int64_t>(basis.shape(0)) * 2 == generator.count &&
                    static_cast<int64_t>(basis.shape(1)) == target.size[0] * target.size[1];
  if (!fits) fail("basis", "(points, target pixels) of float64", shape_of(basis));
  if (basis.shape(1) > 1 && basis.stride(1) != 1) fail("basis", "contiguous memory", "strides");
  if (basis.shape(0) > 1 && basis.shape(1) > 0 && basis.stride(0) != static_cast<int64_t>(basis.shape(1)))
    fail("basis", "contiguous memory", "strides");
  generator.basis = static_cast<const double*>(basis.data());
}

inline void read_generator(Call& call, nb::handle parameters, nb::handle basis, Item& item) {
  Generator& generator = item.generator;
  const int axes = item.axes;
  generator.lattice.axes = axes;
  generator.lattice.unit = item.sampling.unit;
  for (int a = 0; a < kMaxAxes; ++a) {
    generator.lattice.target[a] = item.target.size[a];
    generator.lattice.source[a] = item.source.size[a];
  }
  const Array& array = call.hold("parameters", parameters);
  if (generator.is_pointwise()) {
    generator.field = field_of("parameters", array, axes, item.target);
    generator.batch = generator.field.batch;
    return;
  }
  if (axes == 3 && generator.kind != Kind::affine) fail("parameters", "an affine map of a volume", "another kind");
  read_numbers(call, array, generator);
  const int64_t count = parameter_count(generator.kind, axes);
  if (generator.kind == Kind::spline) {
    if (generator.count % 2) fail("parameters", "points (x, y)", shape_of(array));
    read_basis(call, basis, generator, item.target);
  } else if (generator.count != count) {
    fail("parameters", std::to_string(count) + " numbers an item", shape_of(array));
  }
}

// What forward and backward share. `target` is V or G.
inline Item& read_item(Call& call, const Options& options, Kind kind, nb::handle source, nb::handle parameters,
                       nb::handle basis, nb::handle target) {
  Item& item = call.items.emplace_back();
  item.sampling = options.sampling();
  item.generator.kind = kind;
  const Array& from = call.hold("feature_map", source);
  if (from.ndim() != 4 && from.ndim() != 5) fail("feature_map", "four or five axes", shape_of(from));
  item.axes = static_cast<int>(from.ndim()) - 2;
  item.storage = storage_of("feature_map", from);
  item.source = map_of("feature_map", from, item.axes);
  for (int a = 0; a < item.axes; ++a)
    if (item.source.size[a] == 0) fail("feature_map", "at least one pixel", shape_of(from));
  const Array& to = call.hold("output", target);
  item.target = map_of("output", to, item.axes);
  if (storage_of("output", to) != item.storage) fail("output", "the dtype of feature_map", "another");
  item.batch = item.target.batch;
  read_generator(call, parameters, basis, item);
  const auto fits = [&](int64_t batch) { return batch == item.batch || batch == 1; };
  if (!fits(item.source.batch) || !fits(item.generator.batch) || item.source.channels != item.target.channels)
    fail("output", "the batch and the channels of the operands", shape_of(to));
  const int64_t fills = item.sampling.fill_count;
  if (fills != 1 && fills != item.source.channels) fail("fill", "one value, or one per channel", std::to_string(fills));
  return item;
}

inline void read_map_gradient(Call& call, nb::handle object, Item& item) {
  if (object.is_none()) return;
  const Array& array = call.hold("grad_feature_map", object);
  item.by_source = map_of("grad_feature_map", array, item.axes);
  require_same("grad_feature_map", item.by_source, item.source, array);
  require_dense("grad_feature_map", array);
  if (storage_of("grad_feature_map", array) != item.storage)
    fail("grad_feature_map", "the dtype of feature_map", "another");
}

inline void read_parameter_gradient(Call& call, nb::handle object, Item& item) {
  if (object.is_none()) return;
  const Array& array = call.hold("grad_parameters", object);
  require_dense("grad_parameters", array);
  if (item.generator.is_pointwise()) {
    item.by_field = field_of("grad_parameters", array, item.axes, item.target);
    if (item.by_field.batch != item.generator.batch)
      fail("grad_parameters", "the batch of the parameters", shape_of(array));
    return;
  }
  Generator shape{};
  read_numbers(call, array, shape);
  if (shape.batch != item.generator.batch || shape.count != item.generator.count)
    fail("grad_parameters", "the shape of the parameters", shape_of(array));
  call.results.push_back({call.numbers.size() - 1, call.arrays.size() - 1, is_wide("grad_parameters", array)});
  item.by_parameters = call.numbers.back().data();
}

// Rounds gradients of parameters, once, into the arrays of the caller.
inline void write_results(Call& call) {
  for (const Call::Result& result : call.results) {
    const double* from = call.numbers[result.numbers].data();
    visit_parameters(call.arrays[result.array], result.wide,
                     [&](auto& value) { value = static_cast<std::remove_reference_t<decltype(value)>>(*from++); });
  }
}

}  // namespace stn
