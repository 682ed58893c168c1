// The Python face of the kernels: checks every item and frees the interpreter while they run.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "instruction_sets.h"
#include "schedule.h"

namespace nb = nanobind;

namespace stn {
namespace {

using Array = nb::ndarray<nb::device::cpu>;

[[noreturn]] void fail(const char* where, const std::string& expected, const std::string& got) {
  throw nb::value_error((std::string(where) + ": expected " + expected + ", got " + got + ".").c_str());
}

[[noreturn]] void fail_type(const char* where, const char* expected, nb::handle object) {
  const std::string got = nb::str(object.type().attr("__name__")).c_str();
  throw nb::type_error((std::string(where) + ": expected " + expected + ", got " + got + ".").c_str());
}

template <class T>
T cast(const char* where, const char* expected, nb::handle object) {
  T value;
  if (!nb::try_cast<T>(object, value)) fail_type(where, expected, object);
  return value;
}

std::string shape_of(const Array& array) {
  std::string text = "(";
  for (size_t a = 0; a < array.ndim(); ++a) text += (a ? ", " : "") + std::to_string(array.shape(a));
  return text + ")";
}

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

const Options& options_of(nb::handle object) {
  if (!nb::isinstance<Options>(object)) fail_type("options", "Options", object);
  return nb::cast<const Options&>(object);
}

bool has_dtype(const Array& array, nb::dlpack::dtype_code code, int bits) {
  return array.dtype().code == static_cast<uint8_t>(code) && array.dtype().bits == bits && array.dtype().lanes == 1;
}

Storage storage_of(const char* where, const Array& array) {
  using Code = nb::dlpack::dtype_code;
  if (has_dtype(array, Code::Float, 32)) return Storage::float32;
  if (has_dtype(array, Code::Float, 64)) return Storage::float64;
  if (has_dtype(array, Code::Float, 16)) return Storage::float16;
  if (has_dtype(array, Code::Bfloat, 16)) return Storage::bfloat16;
  if (has_dtype(array, Code::UInt, 8)) return Storage::uint8;
  fail(where, "float32, float64, float16, bfloat16 or uint8", "another dtype");
}

// Whether parameters are float64; float32 is the other choice.
bool is_wide(const char* where, const Array& array) {
  const Storage storage = storage_of(where, array);
  if (storage != Storage::float32 && storage != Storage::float64) fail(where, "float32 or float64", "another dtype");
  return storage == Storage::float64;
}

// A stride that no index ever multiplies is free; 1 is as good as any.
int64_t stride_of(const Array& array, size_t axis) { return array.shape(axis) > 1 ? array.stride(axis) : 1; }

// (N, C, D, H, W) or (N, C, H, W), axes turned into the order x, y, z.
Map map_of(const char* where, const Array& array, int axes) {
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
  return map;
}

void require_same(const char* where, const Map& map, const Map& like, const Array& array) {
  bool same = map.batch == like.batch && map.channels == like.channels;
  for (int a = 0; a < kMaxAxes; ++a) same &= map.size[a] == like.size[a];
  if (!same) fail(where, "the shape of the operand it belongs to", shape_of(array));
}

// Memory that kernels write to has one place per number: in some order of axes it is contiguous.
void require_dense(const char* where, const Array& array) {
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

PointField field_of(const char* where, const Array& array, int axes, const Map& target) {
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
  return field;
}

// Numbers that a kind has per item; -1 for any even count.
int64_t parameter_count(Kind kind, int axes) {
  switch (kind) {
    case Kind::affine: return axes * (axes + 1);
    case Kind::homography: return 9;
    case Kind::attention: return 3;
    case Kind::similarity: return 4;
    case Kind::translation: return 2;
    case Kind::rotation: return 1;
    default: return -1;
  }
}

// Visits the numbers of a (N, ...) array of up to two more axes, in row-major order.
template <class P, class F>
void visit_numbers(const Array& array, F visit) {
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
void visit_parameters(const Array& array, bool wide, F visit) {
  if (wide) visit_numbers<double>(array, visit);
  else visit_numbers<float>(array, visit);
}

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

  explicit Call(size_t count) {
    items.reserve(count);
    arrays.reserve(6 * count);
    numbers.reserve(2 * count);
  }

  const Array& hold(const char* where, nb::handle object) {
    arrays.push_back(cast<Array>(where, "a writable array in host memory", object));
    return arrays.back();
  }
};

void read_numbers(Call& call, const Array& array, Generator& generator) {
  if (array.ndim() < 2 || array.ndim() > 3) fail("parameters", "two or three axes", shape_of(array));
  generator.batch = static_cast<int64_t>(array.shape(0));
  generator.count = static_cast<int64_t>(array.shape(1) * (array.ndim() == 3 ? array.shape(2) : 1));
  const bool wide = is_wide("parameters", array);
  std::vector<double>& numbers = call.numbers.emplace_back();
  numbers.reserve(static_cast<size_t>(generator.batch * generator.count));
  visit_parameters(array, wide, [&](auto value) { numbers.push_back(static_cast<double>(value)); });
  generator.parameters = numbers.data();
}

void read_basis(Call& call, nb::handle object, Generator& generator, const Map& target) {
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

void read_generator(Call& call, nb::handle parameters, nb::handle basis, Item& item) {
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
Item& read_item(Call& call, const Options& options, Kind kind, nb::handle source, nb::handle parameters,
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

void read_map_gradient(Call& call, nb::handle object, Item& item) {
  if (object.is_none()) return;
  const Array& array = call.hold("grad_feature_map", object);
  item.by_source = map_of("grad_feature_map", array, item.axes);
  require_same("grad_feature_map", item.by_source, item.source, array);
  require_dense("grad_feature_map", array);
  if (storage_of("grad_feature_map", array) != item.storage)
    fail("grad_feature_map", "the dtype of feature_map", "another");
}

void read_parameter_gradient(Call& call, nb::handle object, Item& item) {
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
void write_results(Call& call) {
  for (const Call::Result& result : call.results) {
    const double* from = call.numbers[result.numbers].data();
    visit_parameters(call.arrays[result.array], result.wide,
                     [&](auto& value) { value = static_cast<std::remove_reference_t<decltype(value)>>(*from++); });
  }
}

const InstructionSet* chosen = nullptr;

void warp_items(nb::list items, int threads) {
  Call call(items.size());
  for (nb::handle handle : items) {
    const auto item = cast<nb::tuple>("item", "a tuple", handle);
    if (item.size() != 6) fail("item", "6 entries", std::to_string(item.size()));
    read_item(call, options_of(item[0]), cast<Kind>("kind", "a Kind", item[1]), item[2], item[3], item[4], item[5]);
    require_dense("output",
                  call.arrays[call.arrays.size() - (call.items.back().generator.kind == Kind::spline ? 3 : 2)]);
  }
  const InstructionSet& isa = *chosen;
  nb::gil_scoped_release free;
  warp(call.items, isa, threads < 1 ? 1 : threads);
}

void warp_gradients_of_items(nb::list items, int threads) {
  Call call(items.size());
  for (nb::handle handle : items) {
    const auto tuple = cast<nb::tuple>("item", "a tuple", handle);
    if (tuple.size() != 8) fail("item", "8 entries", std::to_string(tuple.size()));
    Item& item = read_item(call, options_of(tuple[0]), cast<Kind>("kind", "a Kind", tuple[1]), tuple[2], tuple[3],
                           tuple[4], tuple[5]);
    if (item.storage == Storage::uint8) fail("feature_map", "a float dtype", "uint8");
    read_map_gradient(call, tuple[6], item);
    read_parameter_gradient(call, tuple[7], item);
  }
  const InstructionSet& isa = *chosen;
  {
    nb::gil_scoped_release free;
    warp_gradients(call.items, isa, threads < 1 ? 1 : threads);
  }
  write_results(call);
}

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here()) names.emplace_back(set.name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const InstructionSet& set : instruction_sets())
    if (name == set.name && set.runs_here()) {
      chosen = &set;
      return;
    }
  std::string known;
  for (const std::string& one : usable_instruction_sets()) known += (known.empty() ? "" : ", ") + one;
  fail("instruction set", "one of " + known, name);
}

}  // namespace
}  // namespace stn

NB_MODULE(_cpu, m) {
  using namespace stn;
  chosen = &best_instruction_set();
  nb::set_leak_warnings(false);  // options are kept in a cache of Python's, which outlives the module at exit
  m.doc() = "Fused, ragged warps and their gradients on the CPU. Private: use stn_engine.";
  nb::enum_<Interpolation>(m, "Interpolation")
      .value("nearest", Interpolation::nearest)
      .value("bilinear", Interpolation::bilinear)
      .value("bicubic", Interpolation::bicubic);
  nb::enum_<Padding>(m, "Padding")
      .value("zeros", Padding::zeros)
      .value("border", Padding::border)
      .value("reflection", Padding::reflection)
      .value("fill", Padding::fill);
  nb::enum_<Unit>(m, "Unit")
      .value("normalized", Unit::normalized)
      .value("normalized_corners", Unit::normalized_corners)
      .value("pixel", Unit::pixel);
  nb::enum_<Kind>(m, "Kind")
      .value("affine", Kind::affine)
      .value("homography", Kind::homography)
      .value("attention", Kind::attention)
      .value("similarity", Kind::similarity)
      .value("translation", Kind::translation)
      .value("rotation", Kind::rotation)
      .value("spline", Kind::spline)
      .value("flow", Kind::flow)
      .value("grid", Kind::grid);
  nb::class_<Options>(m, "Options")
      .def(
          "__init__",
          [](Options* self, Interpolation interpolation, Padding padding, Unit unit, bool zero_subgradient,
             std::vector<double> fill) {
            if (fill.empty()) fail("fill", "at least one value", "none");
            new (self) Options{interpolation, padding, unit, zero_subgradient, std::move(fill)};
          },
          nb::arg("interpolation"), nb::arg("padding"), nb::arg("unit"), nb::arg("zero_subgradient"), nb::arg("fill"));
  m.def("warp", &warp_items, nb::arg("items"), nb::arg("threads"),
        "Writes V of each item (options, kind, feature_map, parameters, basis, output).");
  m.def("warp_gradients", &warp_gradients_of_items, nb::arg("items"), nb::arg("threads"),
        "Writes the gradients of each item (options, kind, feature_map, parameters, basis, grad_output, "
        "grad_feature_map, grad_parameters); None for those not needed.");
  m.def("instruction_sets", &usable_instruction_sets, "Names of those that run here, best first.");
  m.def("use_instruction_set", &use_instruction_set, nb::arg("name"), "Runs all later calls on one of them.");
  m.def("instruction_set", [] { return std::string(chosen->name); }, "The one in use.");
}
