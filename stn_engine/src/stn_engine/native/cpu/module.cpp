// The Python face of the kernels: plans, and one way to run them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "enumerations.h"
#include "instruction_sets.h"
#include "plan.h"
#include "schedule.h"

namespace stn {
namespace {

const InstructionSet* chosen = nullptr;

int64_t numbers_of(const Problem& problem) { return problem.batch * problem.pixels() * problem.target.channels; }

// Whether a call takes so long that other threads of Python can use the time.
bool is_worth_freeing(const Computation& computation) {
  int64_t warps = 0, gradients = 0, objectives = 0;
  for (const Problem& problem : computation.warps) warps += numbers_of(problem);
  for (const Problem& problem : computation.gradients) gradients += numbers_of(problem);
  for (const Objective& objective : computation.objectives) objectives += numbers_of(objective.problem);
  return std::max({warps, gradients, objectives}) >= kWorthFreeing;
}

nb::list run(nb::list calls, int threads) {
  Computation computation(calls.size());
  nb::list results;
  for (nb::handle handle : calls) {
    nb::tuple call;
    if (!nb::try_cast<nb::tuple>(handle, call)) fail_type("call", "a tuple", handle);
    if (call.size() == 0 || !nb::isinstance<Plan>(call[0])) fail("call", "a Plan and operands", "something else");
    results.append(nb::cast<const Plan&>(call[0]).add(computation, call));
  }
  const InstructionSet& isa = *chosen;
  // Torch computes before and after on the tensors whose addresses these are, but never on bytes.
  const Threads on{threads < 1 ? 1 : threads, !computation.reads_bytes()};
  std::optional<nb::gil_scoped_release> free;
  if (is_worth_freeing(computation)) free.emplace();
  warp(computation.warps, isa, on);
  warp_gradients(computation.gradients, isa, on);
  objectives(computation.objectives, isa, on);
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
  export_enumerations(m);
  nb::class_<Options>(m, "Options")
      .def(
          "__init__",
          [](Options* self, Interpolation interpolation, Padding padding, Unit unit, bool zero_subgradient,
             std::vector<double> fill, std::vector<int64_t> labels) {
            if (fill.empty()) fail("fill", "at least one value", "none");
            if (!labels.empty() && labels.size() != fill.size())
              fail("labels", "none, or as many as of fill", std::to_string(labels.size()));
            new (self) Options{interpolation, padding, unit, zero_subgradient, std::move(fill), std::move(labels)};
          },
          nb::arg("interpolation"), nb::arg("padding"), nb::arg("unit"), nb::arg("zero_subgradient"), nb::arg("fill"),
          nb::arg("labels") = std::vector<int64_t>());
  nb::class_<Layout>(m, "Layout")
      .def(nb::init<Storage, std::vector<int64_t>, std::vector<int64_t>>(), nb::arg("dtype"), nb::arg("shape"),
           nb::arg("strides"));
  nb::class_<Comparison>(m, "Comparison")
      .def(nb::init<Loss, double, Domain>(), nb::arg("loss"), nb::arg("delta"), nb::arg("domain"));
  nb::class_<Plan>(m, "Plan")
      .def_static("warp", &Plan::warp, nb::arg("options"), nb::arg("kind"), nb::arg("feature_map"),
                  nb::arg("parameters"), nb::arg("output"), "A warp of tensors of these layouts.")
      .def_static("gradients", &Plan::gradients, nb::arg("options"), nb::arg("kind"), nb::arg("grad_output"),
                  nb::arg("feature_map"), nb::arg("parameters"), nb::arg("grad_feature_map").none(),
                  nb::arg("grad_parameters").none(), "The gradients of a warp; None for those not needed.")
      .def_static("objective", &Plan::objective, nb::arg("options"), nb::arg("comparison"), nb::arg("kind"),
                  nb::arg("warped"), nb::arg("moving"), nb::arg("parameters"), nb::arg("fixed"),
                  nb::arg("weights").none(), nb::arg("gradient").none(), nb::arg("gauss_newton").none(),
                  "How far a warp is from a fixed map; None for what is not there, or not needed.");
  m.def("run", &run, nb::arg("calls"), nb::arg("threads"),
        "Computes each call (plan, *operands), operands as addresses or bytes, and returns the bytes of its results; "
        "or (plan, *operands, *results) into these addresses.");
  m.def("instruction_sets", &usable_instruction_sets, "Names of those that run here, best first.");
  m.def("use_instruction_set", &use_instruction_set, nb::arg("name"), "Runs all later calls on one of them.");
  m.def("instruction_set", [] { return std::string(chosen->name); }, "The one in use.");
}
