// Plans: what is computed on tensors of which layouts, checked once, and run on the memory of many calls.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "layout.h"
#include "objectives.h"
#include "schedule.h"

namespace stn {

// The options of a warp; every plan keeps those that it was made with.
struct Options {
  Interpolation interpolation;
  Padding padding;
  Unit unit;
  bool zero_subgradient;
  std::vector<double> fill;
  std::vector<int64_t> labels;

  Sampling sampling() const {
    const auto count = static_cast<int64_t>(fill.size());
    return {interpolation, padding, unit, zero_subgradient, fill.data(), labels.empty() ? nullptr : labels.data(),
            count};
  }
};

// How an objective compares maps.
struct Comparison {
  Loss loss;
  double delta;
  Domain domain;

  Comparison(Loss the_loss, double the_delta, Domain the_domain)
      : loss(the_loss), delta(the_delta), domain(the_domain) {
    if (!(delta > 0.0)) fail("delta", "a number > 0", std::to_string(delta));
  }
};

// Bytes that a Python object lends, as long as this lives.
class Bytes {
 public:
  Bytes(const char* where, nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) {
      PyErr_Clear();
      fail_type(where, "an address or contiguous bytes", object);
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

// An operand or a result of a plan: its name, and how much memory its numbers take where they are dense.
struct Extent {
  const char* where = "";
  int64_t bytes = 0;
  int64_t itemsize = 1;
  bool is_dense = true;

  Extent() = default;
  Extent(const char* name, const Layout& layout)
      : where(name), bytes(bytes_of(layout.storage)), itemsize(bytes), is_dense(layout.is_dense()) {
    for (int64_t size : layout.shape)
      if (__builtin_mul_overflow(bytes, size, &bytes)) fail(where, "fewer than 2^63 bytes", layout.text());
  }
};

// New bytes that nobody has seen yet, so that they may still be written.
inline nb::bytes new_bytes(int64_t size) {
  PyObject* object = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
  if (object == nullptr) throw nb::python_error();
  return nb::steal<nb::bytes>(object);
}

inline void* address_of(const char* where, nb::handle object) {
  void* address = PyLong_AsVoidPtr(object.ptr());
  if (address == nullptr && PyErr_Occurred()) {
    PyErr_Clear();
    fail_type(where, "an address", object);
  }
  return address;
}

// What of one run has to live until its end.
class Computation {
 public:
  explicit Computation(size_t count) {
    bytes_.reserve(3 * count);
    numbers_.reserve(2 * count);
    warps.reserve(count);
    gradients.reserve(count);
  }

  std::vector<Problem> warps, gradients;
  std::vector<Objective> objectives;

  // Where an operand is: at an address, or in bytes of exactly its size.
  void* read(nb::handle object, const Extent& extent) {
    if (PyLong_Check(object.ptr())) return address_of(extent.where, object);
    Bytes& bytes = bytes_.emplace_back(extent.where, object);
    if (!extent.is_dense) fail(extent.where, "dense memory", "gaps, overlaps or negative strides");
    if (bytes.size() != extent.bytes)
      fail(extent.where, std::to_string(extent.bytes) + " bytes", std::to_string(bytes.size()));
    return bytes.aligned(static_cast<size_t>(extent.itemsize));
  }

  // Whether any operand was lent as bytes.
  bool reads_bytes() const { return !bytes_.empty(); }

  double* numbers(int64_t count) { return numbers_.emplace_back(static_cast<size_t>(count)).data(); }

  // Numbers that are rounded, once, into a result.
  void round_later(const double* from, const Layout& layout, void* to) { roundings_.push_back({from, &layout, to}); }

  void round() const {
    for (const Rounding& one : roundings_) {
      const double* from = one.from;
      visit_parameters(*one.layout, one.to,
                       [&](auto& value) { value = static_cast<std::remove_reference_t<decltype(value)>>(*from++); });
    }
  }

 private:
  struct Rounding {
    const double* from;
    const Layout* layout;
    void* to;
  };

  std::vector<Bytes> bytes_;
  std::vector<std::vector<double>> numbers_;
  std::vector<Rounding> roundings_;
};

// A warp, its gradients, or an objective of it. Operands are (feature_map, parameters), of gradients (grad_output,
// feature_map, parameters), of objectives (moving, parameters, fixed, weights) or all but weights, and of splines the
// basis behind them: (points, target pixels) of float64. Results are (output), or those of (grad_feature_map,
// grad_parameters), or of (value, count, gradient, gauss_newton), that are needed.
class Plan {
 public:
  static Plan warp(nb::object options, Kind kind, const Layout& feature_map, const Layout& parameters,
                   const Layout& output) {
    Plan plan(std::move(options), kind, feature_map, parameters, "output", output);
    require_dense("output", output);
    plan.results_ = {plan.target_};
    return plan;
  }

  static Plan gradients(nb::object options, Kind kind, const Layout& grad_output, const Layout& feature_map,
                        const Layout& parameters, const std::optional<Layout>& grad_feature_map,
                        const std::optional<Layout>& grad_parameters) {
    Plan plan(std::move(options), kind, feature_map, parameters, "grad_output", grad_output);
    if (!is_float(plan.problem_.storage)) fail("feature_map", "a float dtype", "integers");
    plan.is_gradient_ = true;
    plan.operands_.insert(plan.operands_.begin(), plan.target_);
    if (grad_feature_map) plan.need_map(*grad_feature_map);
    if (grad_parameters) plan.need_parameters(*grad_parameters);
    return plan;
  }

  static Plan objective(nb::object options, const Comparison& comparison, Kind kind, const Layout& warped,
                        const Layout& moving, const Layout& parameters, const Layout& fixed,
                        const std::optional<Layout>& weights, const std::optional<Layout>& gradient,
                        const std::optional<Layout>& gauss_newton) {
    Plan plan(std::move(options), kind, moving, parameters, "warped", warped);
    if (!is_float(plan.problem_.storage)) fail("moving", "a float dtype", "integers");
    Objective objective{};
    objective.loss = comparison.loss, objective.delta = comparison.delta, objective.domain = comparison.domain;
    auto place = plan.operands_.begin() + 2;
    objective.fixed = plan.compared("fixed", fixed, plan.problem_.target.channels);
    place = plan.operands_.insert(place, Extent("fixed", fixed)) + 1;
    if (weights) {
      objective.weights = plan.compared("weights", *weights, 1);
      plan.operands_.insert(place, Extent("weights", *weights));
    }
    plan.has_weights_ = weights.has_value();
    plan.objective_ = objective;
    const int64_t batch = plan.problem_.batch;
    const Layout numbers(Storage::float64, {batch}, {1});
    plan.results_ = {Extent("value", numbers), Extent("count", numbers)};
    if (gradient) plan.need_gradient(*gradient);
    if (gauss_newton) plan.need_gauss_newton(*gauss_newton);
    return plan;
  }

  // Adds the problem of a call (plan, *operands), whose results become new bytes, or (plan, *operands, *results), of
  // which each result is the address where it goes. Returns the bytes, which are there when the problem is computed.
  nb::tuple add(Computation& to, const nb::tuple& call) const {
    const size_t given = call.size() - 1, operands = operands_.size(), all = operands + results_.size();
    if (given != operands && given != all)
      fail("call", std::to_string(1 + operands) + " or " + std::to_string(1 + all) + " entries",
           std::to_string(call.size()));
    Objective* objective = objective_ ? &to.objectives.emplace_back(*objective_) : nullptr;
    if (objective) objective->problem = problem_;
    Problem& problem = objective ? objective->problem : (is_gradient_ ? to.gradients : to.warps).emplace_back(problem_);
    read(problem, objective, to, call);
    const size_t returned = given == all ? 0 : results_.size();
    nb::tuple created = nb::steal<nb::tuple>(PyTuple_New(static_cast<Py_ssize_t>(returned)));
    for (size_t r = 0; r < results_.size(); ++r) {
      void* memory;
      if (returned == 0) {
        memory = address_of(results_[r].where, call[1 + operands + r]);
      } else {
        nb::bytes bytes = new_bytes(results_[r].bytes);
        memory = PyBytes_AS_STRING(bytes.ptr());
        PyTuple_SET_ITEM(created.ptr(), static_cast<Py_ssize_t>(r), bytes.release().ptr());
      }
      if (objective) write(*objective, to, r, memory);
      else write(problem, to, r, memory);
    }
    return created;
  }

 private:
  Plan(nb::object options, Kind kind, const Layout& feature_map, const Layout& parameters, const char* target_name,
       const Layout& target)
      : options_(std::move(options)), parameters_(parameters) {
    if (!nb::isinstance<Options>(options_)) fail_type("options", "Options", options_);
    problem_.sampling = nb::cast<const Options&>(options_).sampling();
    problem_.generator.kind = kind;
    if (feature_map.axes() != 4 && feature_map.axes() != 5)
      fail("feature_map", "four or five axes", feature_map.text());
    problem_.axes = static_cast<int>(feature_map.axes()) - 2;
    problem_.storage = feature_map.storage;
    if (is_label(problem_.storage) && problem_.sampling.interpolation != Interpolation::nearest)
      fail("interpolation", "nearest for labels", "another");
    problem_.source = map_of("feature_map", feature_map, problem_.axes);
    for (int a = 0; a < problem_.axes; ++a)
      if (problem_.source.size[a] == 0) fail("feature_map", "at least one pixel", feature_map.text());
    problem_.target = map_of(target_name, target, problem_.axes);
    if (target.storage != problem_.storage) fail(target_name, "the dtype of feature_map", "another");
    problem_.batch = problem_.target.batch;
    operands_ = {Extent("feature_map", feature_map), Extent("parameters", parameters)};
    target_ = Extent(target_name, target);
    plan_generator();
    const auto fits = [&](int64_t batch) { return batch == problem_.batch || batch == 1; };
    if (!fits(problem_.source.batch) || !fits(problem_.generator.batch) ||
        problem_.source.channels != problem_.target.channels)
      fail(target_name, "the batch and the channels of the operands", target.text());
    const int64_t fills = problem_.sampling.fill_count;
    if (fills != 1 && fills != problem_.source.channels)
      fail("fill", "one value, or one per channel", std::to_string(fills));
  }

  void plan_generator() {
    Generator& generator = problem_.generator;
    const int axes = problem_.axes;
    generator.lattice.axes = axes;
    generator.lattice.unit = problem_.sampling.unit;
    for (int a = 0; a < kMaxAxes; ++a) {
      generator.lattice.target[a] = problem_.target.size[a];
      generator.lattice.source[a] = problem_.source.size[a];
    }
    if (generator.is_pointwise()) {
      generator.field = field_of("parameters", parameters_, axes, problem_.target);
      generator.batch = generator.field.batch;
      return;
    }
    if (axes == 3 && generator.kind != Kind::affine) fail("parameters", "an affine map of a volume", "another kind");
    if (parameters_.axes() < 2 || parameters_.axes() > 3) fail("parameters", "two or three axes", parameters_.text());
    (void)is_wide("parameters", parameters_);
    generator.batch = parameters_.shape[0];
    generator.count = parameters_.shape[1] * (parameters_.axes() == 3 ? parameters_.shape[2] : 1);
    const int64_t count = parameter_count(generator.kind, axes);
    if (count >= 0 && generator.count != count)
      fail("parameters", std::to_string(count) + " numbers an item", parameters_.text());
    if (count < 0) plan_basis();
  }

  void plan_basis() {
    const int64_t count = problem_.generator.count, pixels = problem_.pixels();
    if (count % 2) fail("parameters", "points (x, y)", parameters_.text());
    operands_.push_back(Extent("basis", Layout(Storage::float64, {count / 2, pixels}, {pixels, 1})));
  }

  void need_map(const Layout& layout) {
    problem_.grad_feature_map = map_of("grad_feature_map", layout, problem_.axes);
    bool same = problem_.grad_feature_map.batch == problem_.source.batch &&
                problem_.grad_feature_map.channels == problem_.source.channels;
    for (int a = 0; a < kMaxAxes; ++a) same &= problem_.grad_feature_map.size[a] == problem_.source.size[a];
    if (!same) fail("grad_feature_map", "the shape of the operand it belongs to", layout.text());
    require_dense("grad_feature_map", layout);
    if (layout.storage != problem_.storage) fail("grad_feature_map", "the dtype of feature_map", "another");
    results_.emplace_back("grad_feature_map", layout);
    needs_map_ = true;
  }

  void need_parameters(const Layout& layout) {
    require_dense("grad_parameters", layout);
    if (problem_.generator.is_pointwise()) {
      problem_.grad_field = field_of("grad_parameters", layout, problem_.axes, problem_.target);
      if (problem_.grad_field.batch != problem_.generator.batch)
        fail("grad_parameters", "the batch of the parameters", layout.text());
    }
    if (layout.shape != parameters_.shape) fail("grad_parameters", "the shape of the parameters", layout.text());
    (void)is_wide("grad_parameters", layout);
    results_.emplace_back("grad_parameters", layout);
    grad_parameters_ = layout;
  }

  // A map that is compared with the target, whose items may be one.
  Map compared(const char* where, const Layout& layout, int64_t channels) const {
    Map map = map_of(where, layout, problem_.axes);
    bool fits = (map.batch == problem_.batch || map.batch == 1) && map.channels == channels;
    for (int a = 0; a < kMaxAxes; ++a) fits &= map.size[a] == problem_.target.size[a];
    if (!fits) fail(where, "one number per target pixel", layout.text());
    if (layout.storage != problem_.storage) fail(where, "the dtype of moving", "another");
    if (map.batch == 1) map.batch_stride = 0;
    return map;
  }

  // The gradient of every item: parameters of its own, whether or not all share one.
  void need_gradient(const Layout& layout) {
    std::vector<int64_t> shape = parameters_.shape;
    shape[0] = problem_.batch;
    if (layout.shape != shape) fail("gradient", "the parameters of every item", layout.text());
    if (!layout.is_contiguous()) fail("gradient", "contiguous memory", "another order");
    (void)is_wide("gradient", layout);
    if (problem_.generator.is_pointwise())
      problem_.grad_field = field_of("gradient", layout, problem_.axes, problem_.target);
    results_.emplace_back("gradient", layout);
    grad_parameters_ = layout;
  }

  void need_gauss_newton(const Layout& layout) {
    const int64_t count = problem_.generator.count;
    if (!problem_.generator.is_linear()) fail("gauss_newton", "a transform that is a matrix", "another kind");
    if (objective_->loss == Loss::ncc) fail("gauss_newton", "a loss of squares", "ncc");
    if (layout.shape != std::vector<int64_t>{problem_.batch, count, count} || !layout.is_contiguous() ||
        layout.storage != Storage::float64)
      fail("gauss_newton", "a contiguous matrix of float64 for every item", layout.text());
    results_.emplace_back("gauss_newton", layout);
  }

  void read(Problem& problem, Objective* objective, Computation& to, const nb::tuple& call) const {
    size_t place = 0;
    const auto next = [&] { return ++place, to.read(call[place], operands_[place - 1]); };
    if (is_gradient_) problem.target.data = next();
    problem.source.data = next();
    void* parameters = next();
    if (objective) objective->fixed.data = next();
    if (objective && has_weights_) objective->weights.data = next();
    Generator& generator = problem.generator;
    if (generator.is_pointwise()) {
      generator.field.data = parameters;
      return;
    }
    double* numbers = to.numbers(generator.batch * generator.count);
    generator.parameters = numbers;
    visit_parameters(parameters_, parameters, [&](auto value) { *numbers++ = static_cast<double>(value); });
    if (place < operands_.size()) generator.basis = static_cast<const double*>(next());
  }

  // Kernels leave the gradients of a warp without target pixels, and of points that have no slope, as they were: 0.
  void write(Problem& problem, Computation& to, size_t result, void* memory) const {
    const auto clear = [&] { std::memset(memory, 0, static_cast<size_t>(results_[result].bytes)); };
    const bool is_empty = target_.bytes == 0;
    if (!is_gradient_) {
      problem.target.data = memory;
    } else if (needs_map_ && result == 0) {
      problem.grad_feature_map.data = memory;
      if (is_empty) clear();
    } else if (problem.generator.is_pointwise()) {
      problem.grad_field.data = memory;
      if (is_empty || problem.sampling.interpolation == Interpolation::nearest) clear();
    } else {
      problem.grad_parameters = to.numbers(problem.generator.batch * problem.generator.count);
      to.round_later(problem.grad_parameters, *grad_parameters_, memory);
    }
  }

  // Kernels leave what has no slope as it was, and gradients without target pixels: 0.
  void write(Objective& objective, Computation& to, size_t result, void* memory) const {
    Problem& problem = objective.problem;
    const size_t size = static_cast<size_t>(results_[result].bytes);
    if (result == 0) {
      objective.value = static_cast<double*>(memory);
    } else if (result == 1) {
      objective.count = static_cast<double*>(memory);
    } else if (result > 2 || !grad_parameters_) {
      std::memset(memory, 0, size);
      objective.gauss_newton = static_cast<double*>(memory);
    } else if (problem.generator.is_pointwise()) {
      if (!objective.has_slopes()) std::memset(memory, 0, size);
      problem.grad_field.data = memory;
    } else {
      objective.gradient = to.numbers(problem.batch * problem.generator.count);
      to.round_later(objective.gradient, *grad_parameters_, memory);
    }
  }

  nb::object options_;  // has the fill values
  Problem problem_{};
  Layout parameters_;
  std::optional<Layout> grad_parameters_;
  Extent target_;
  std::vector<Extent> operands_, results_;
  std::optional<Objective> objective_;  // its problem is problem_
  bool is_gradient_ = false, needs_map_ = false, has_weights_ = false;
};

}  // namespace stn
