// The Python face of the kernels: checks every item and frees the interpreter while they run.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "forms.h"
#include "instruction_sets.h"
#include "items.h"
#include "schedule.h"

namespace stn {
namespace {

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
  warp(call.items, isa, {threads < 1 ? 1 : threads, true});
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
    warp_gradients(call.items, isa, {threads < 1 ? 1 : threads, true});
  }
  write_results(call);
}

// Below this, calls end before another thread has taken the interpreter over.
constexpr int64_t kWorthFreeing = 1 << 14;

bool is_worth_freeing(const std::vector<Item>& items) {
  int64_t numbers = 0;
  for (const Item& item : items) numbers += item.batch * item.pixels() * item.target.channels;
  return numbers >= kWorthFreeing;
}

nb::list compute_forms(nb::list calls, int threads) {
  Computation computation(calls.size());
  nb::list results;
  for (nb::handle handle : calls) {
    const auto call = cast<nb::tuple>("call", "a tuple", handle);
    if (call.size() == 0 || !nb::isinstance<Form>(call[0])) fail("call", "a Form and bytes", "something else");
    results.append(nb::cast<const Form&>(call[0]).add(computation, call));
  }
  const InstructionSet& isa = *chosen;
  threads = threads < 1 ? 1 : threads;
  std::optional<nb::gil_scoped_release> free;
  if (is_worth_freeing(computation.warps) || is_worth_freeing(computation.gradients)) free.emplace();
  warp(computation.warps, isa, {threads});
  warp_gradients(computation.gradients, isa, {threads});
  computation.round();
  return results;
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
  nb::enum_<Storage>(m, "Storage")
      .value("float32", Storage::float32)
      .value("float64", Storage::float64)
      .value("float16", Storage::float16)
      .value("bfloat16", Storage::bfloat16)
      .value("uint8", Storage::uint8);
  nb::class_<Options>(m, "Options")
      .def(
          "__init__",
          [](Options* self, Interpolation interpolation, Padding padding, Unit unit, bool zero_subgradient,
             std::vector<double> fill) {
            if (fill.empty()) fail("fill", "at least one value", "none");
            new (self) Options{interpolation, padding, unit, zero_subgradient, std::move(fill)};
          },
          nb::arg("interpolation"), nb::arg("padding"), nb::arg("unit"), nb::arg("zero_subgradient"), nb::arg("fill"));
  nb::class_<Layout>(m, "Layout")
      .def(nb::init<Storage, const std::vector<int64_t>&, const std::vector<int64_t>&>(), nb::arg("dtype"),
           nb::arg("shape"), nb::arg("strides"));
  nb::class_<Form>(m, "Form")
      .def(nb::init<nb::object, Kind, nb::handle, nb::handle, nb::handle>(), nb::arg("options"), nb::arg("kind"),
           nb::arg("feature_map"), nb::arg("parameters"), nb::arg("output"), "A warp of arrays of these layouts.")
      .def("differentiate", &Form::differentiate, nb::arg("feature_map"), nb::arg("parameters"),
           "Makes it the gradients of that warp with respect to some of its operands.");
  m.def("compute", &compute_forms, nb::arg("calls"), nb::arg("threads"),
        "Results of each call (form, operands) as bytes; operands are bytes, of gradients grad_output first.");
  m.def("warp", &warp_items, nb::arg("items"), nb::arg("threads"),
        "Writes V of each item (options, kind, feature_map, parameters, basis, output).");
  m.def("warp_gradients", &warp_gradients_of_items, nb::arg("items"), nb::arg("threads"),
        "Writes the gradients of each item (options, kind, feature_map, parameters, basis, grad_output, "
        "grad_feature_map, grad_parameters); None for those not needed.");
  m.def("instruction_sets", &usable_instruction_sets, "Names of those that run here, best first.");
  m.def("use_instruction_set", &use_instruction_set, nb::arg("name"), "Runs all later calls on one of them.");
  m.def("instruction_set", [] { return std::string(chosen->name); }, "The one in use.");
}
