// SPDX-License-Identifier: Apache-2.0
// cadre._core: cadre/moe.hpp for Python. Arrays pass by the buffer protocol, communicators by their Fortran handles, so
// neither NumPy nor mpi4py is needed to build it. Shapes and conversions are the work of cadre/__init__.py.
#include <comm/base/check.hpp>
#include <layers/facade/moe.hpp>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace py = pybind11;
namespace moe = cadre::moe;

namespace {

// float32 [rows, width] of adjacent elements; rows may have a stride.
struct Matrix {
  py::buffer_info info;
  bool writable;

  Matrix(const py::buffer& buffer, bool is_written) : info(buffer.request(is_written)), writable(is_written) {
    if (info.ndim != 2 || info.format != py::format_descriptor<float>::format() ||
        (info.strides[1] != sizeof(float) && info.shape[1] > 1) || info.strides[0] % sizeof(float) != 0) {
      throw py::type_error("expected a float32 matrix whose rows are adjacent elements");
    }
  }
  int64_t stride() const {
    return info.shape[0] > 1 ? info.strides[0] / static_cast<int64_t>(sizeof(float)) : info.shape[1];
  }
  moe::Rows rows() const { return {static_cast<float*>(info.ptr), info.shape[0], info.shape[1], stride()}; }
  moe::ConstRows const_rows() const { return rows(); }
};

// A C-contiguous array of T.
template <class T>
struct Values {
  py::buffer_info info;

  Values(const py::buffer& buffer, bool is_written) : info(buffer.request(is_written)) {
    if (info.itemsize != sizeof(T) || !py::detail::compare_buffer_info<T>::compare(info)) {
      throw py::type_error("an array has another element type than expected");
    }
  }
  std::span<T> span() const { return {static_cast<T*>(info.ptr), static_cast<size_t>(info.size)}; }
};

template <class Name>
Name named(const std::string& text, const char* key, std::initializer_list<std::pair<const char*, Name>> names) {
  std::string allowed;
  for (const auto& [name, value] : names) {
    if (text == name) return value;
    allowed += (allowed.empty() ? "" : ", ") + std::string(name);
  }
  throw py::value_error(std::string(key) + " = '" + text + "', allowed: " + allowed);
}

moe::Wire wire_named(const std::string& text, const char* key) {
  return named<moe::Wire>(text, key, {{"fp32", moe::Wire::fp32}, {"bf16", moe::Wire::bf16}, {"fp8", moe::Wire::fp8}});
}

// Garbage collection comes at different times on different ranks, so only close() is collective.
class PyDispatcher {
 public:
  PyDispatcher(int fortran_comm, const moe::Options& options)
      : dispatcher_(moe::make_dispatcher(MPI_Comm_f2c(fortran_comm), options)) {}
  ~PyDispatcher() { leave(); }
  PyDispatcher(const PyDispatcher&) = delete;
  PyDispatcher& operator=(const PyDispatcher&) = delete;

  moe::Dispatcher& get() {
    if (!dispatcher_) throw std::runtime_error("the dispatcher is closed");
    return *dispatcher_;
  }
  void close() {
    if (dispatcher_ && dispatcher_->share().use_count() > 1) leave();  // batches outlive it
    dispatcher_.reset();
  }

 private:
  void leave() {
    if (dispatcher_) dispatcher_->leave_to_process_end();
  }

  std::optional<moe::Dispatcher> dispatcher_;
};

// Memory that a batch keeps, for the buffer protocol.
struct View {
  void* data;
  std::vector<py::ssize_t> shape;
  bool is_float;
};

py::buffer_info buffer_of(const View& view) {
  const py::ssize_t item = 4;
  std::vector<py::ssize_t> strides(view.shape.size(), item);
  if (view.shape.size() == 2) strides[0] = item * view.shape[1];
  static std::array<float, 1> const none{};
  void* data = view.data != nullptr ? view.data : const_cast<float*>(none.data());
  const std::string format =
      view.is_float ? py::format_descriptor<float>::format() : py::format_descriptor<int32_t>::format();
  return {data, item, format, static_cast<py::ssize_t>(view.shape.size()), view.shape, strides};
}

template <class T>
py::list list_of(std::span<const T> values) {
  py::list list;
  for (const T value : values) list.append(value);
  return list;
}

template <class T>
py::bytes bytes_of(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

void define_plan(py::module_& m) {
  py::class_<moe::Plan>(m, "Plan")
      .def_property_readonly("num_ranks", &moe::Plan::num_ranks)
      .def_property_readonly("top_k", &moe::Plan::top_k)
      .def_property_readonly("num_tokens", &moe::Plan::num_tokens)
      .def_property_readonly("num_rows", &moe::Plan::num_rows)
      .def_property_readonly("num_slots", &moe::Plan::num_slots)
      .def_property_readonly("num_dropped", &moe::Plan::num_dropped)
      .def_property_readonly("row_counts", [](const moe::Plan& plan) { return bytes_of(plan.row_counts()); })
      .def_property_readonly("slot_counts", [](const moe::Plan& plan) { return bytes_of(plan.slot_counts()); })
      .def_property_readonly("row_token", [](const moe::Plan& plan) { return bytes_of(plan.row_token()); })
      .def_property_readonly("row_slots", [](const moe::Plan& plan) { return bytes_of(plan.row_slots()); })
      .def_property_readonly("slots", [](const moe::Plan& plan) { return bytes_of(plan.slots()); })
      .def_property_readonly("slot_expert", [](const moe::Plan& plan) { return bytes_of(plan.slot_expert()); })
      .def("describe", &moe::Plan::describe)
      .def("__eq__", [](const moe::Plan& a, const moe::Plan& b) { return a == b; });
  m.def("make_plan", [](const py::buffer& ids, int top_k, int num_experts, int num_ranks, int rank,
                        const std::vector<std::vector<int>>& experts_of) {
    const Values<int32_t> values(ids, false);
    return moe::make_plan(values.span(), top_k, num_experts, num_ranks, rank, experts_of);
  });
}

void define_dispatcher(py::module_& m) {
  py::class_<PyDispatcher>(m, "Dispatcher")
      .def(py::init([](int fortran_comm, int num_experts, int top_k, int64_t width, int64_t max_tokens,
                       const std::string& strategy, const std::string& dispatch_wire, const std::string& combine_wire,
                       const std::string& sums, const std::vector<std::vector<int>>& experts_of, int threads,
                       double deadline_seconds) {
        const moe::Options options = {
            .num_experts = num_experts,
            .top_k = top_k,
            .width = width,
            .max_tokens = max_tokens,
            .strategy = strategy,
            .dispatch_wire = wire_named(dispatch_wire, "dispatch_wire"),
            .combine_wire = wire_named(combine_wire, "combine_wire"),
            .sums = named<moe::Sums>(sums, "sums", {{"partial", moe::Sums::partial}, {"slots", moe::Sums::slots}}),
            .experts_of = experts_of,
            .threads = threads,
            .deadline_seconds = deadline_seconds};
        const py::gil_scoped_release others_run;
        return std::make_unique<PyDispatcher>(fortran_comm, options);
      }))
      .def_property_readonly("rank", [](PyDispatcher& self) { return self.get().rank(); })
      .def_property_readonly("num_ranks", [](PyDispatcher& self) { return self.get().num_ranks(); })
      .def_property_readonly("experts", [](PyDispatcher& self) { return list_of<int>(self.get().experts()); })
      .def_property_readonly("strategy", [](PyDispatcher& self) { return self.get().strategy(); })
      .def("dispatch",
           [](PyDispatcher& self, const py::buffer& x, const py::buffer& ids, const py::buffer& weights) {
             const Matrix rows(x, false);
             const Values<int32_t> id_values(ids, false);
             const Values<float> weight_values(weights, false);
             moe::Dispatcher& dispatcher = self.get();
             const py::gil_scoped_release others_run;
             return moe::dispatch(dispatcher, rows.const_rows(), id_values.span(), weight_values.span());
           })
      .def("close", &PyDispatcher::close, py::call_guard<py::gil_scoped_release>());
}

void define_batch(py::module_& m) {
  py::class_<View>(m, "View", py::buffer_protocol()).def_buffer(&buffer_of);
  py::class_<moe::Batch>(m, "Batch")
      .def_property_readonly("rows", py::cpp_function(
                                         [](const moe::Batch& batch) {
                                           const moe::Rows rows = batch.rows();
                                           return View{rows.data, {rows.count, rows.width}, true};
                                         },
                                         py::keep_alive<0, 1>()))
      .def_property_readonly("expert_offsets", [](const moe::Batch& batch) { return bytes_of(batch.expert_offsets()); })
      .def_property_readonly("weights", [](const moe::Batch& batch) { return bytes_of(batch.weights()); })
      .def_property_readonly("plan", [](const moe::Batch& batch) { return batch.plan(); })
      .def("combine",
           [](moe::Batch& batch, const py::buffer& results, const py::buffer& y) {
             const Matrix from(results, false);
             const Matrix into(y, true);
             const py::gil_scoped_release others_run;
             moe::combine(batch, from.const_rows(), into.rows());
           })
      .def("combine_backward",
           [](moe::Batch& batch, const py::buffer& dy, const py::buffer& d_results) {
             const Matrix from(dy, false);
             const Matrix into(d_results, true);
             const py::gil_scoped_release others_run;
             moe::combine_backward(batch, from.const_rows(), into.rows());
           })
      .def("combine_backward",
           [](moe::Batch& batch, const py::buffer& dy, const py::buffer& results, const py::buffer& d_results,
              const py::buffer& d_weights) {
             const Matrix from(dy, false);
             const Matrix experts(results, false);
             const Matrix into(d_results, true);
             const Values<float> weights(d_weights, true);
             const py::gil_scoped_release others_run;
             moe::combine_backward(batch, from.const_rows(), experts.const_rows(), into.rows(), weights.span());
           })
      .def("dispatch_backward", [](moe::Batch& batch, const py::buffer& d_rows, const py::buffer& dx) {
        const Matrix from(d_rows, false);
        const Matrix into(dx, true);
        const py::gil_scoped_release others_run;
        moe::dispatch_backward(batch, from.const_rows(), into.rows());
      });
}

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  if (MPI_Get_library_version(text.data(), &length) != MPI_SUCCESS) return "unknown";
  return {text.data(), static_cast<size_t>(length)};
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const cadre::Error& error) {
      PyErr_SetString(error.kind() == cadre::ErrorKind::input ? PyExc_ValueError : PyExc_RuntimeError, error.what());
    }
  });
  m.doc() = "cadre/moe.hpp; use the package cadre";
  m.def("version", &moe::version);
  m.def("mpi_library", &mpi_library);
  define_plan(m);
  define_dispatcher(m);
  define_batch(m);
}
