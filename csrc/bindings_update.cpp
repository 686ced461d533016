// One pass for reduce, update and publish, by tables of addresses.
#include <nanobind/ndarray.h>

#include "bindings.h"
#include "cpu/update.h"
#include "shm/copy.h"

namespace pycomm {
namespace {

// A row a piece: its gradients, its parameters, two states, the row of its settings,
// its count and how many of these are its tail.
using Table = nb::ndarray<const uint64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
// `touched_bytes`: what all ranks together read and write, see CopyOut.
using Rows = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
constexpr size_t kColumns = 5;

cpu::Pass pass_of(const Table& table, int dtype, int gradients, double scale, size_t touched) {
  const int parameters = int(table.shape(1)) - gradients - int(kColumns);
  if (dtype < 0 || dtype > 16 || !cpu::update_loops(dtype).scale)
    throw std::invalid_argument("there are no updates of this dtype");
  if (gradients < 1 || parameters < 1)
    throw std::invalid_argument("a piece needs a gradient and a parameter");
  return {dtype, gradients, parameters, scale, touched >= shm::cache_bytes()};
}

cpu::Piece piece_of(const uint64_t* row, const cpu::Pass& pass, const Rows* settings) {
  const uint64_t* after = row + pass.gradients + pass.parameters;
  return {reinterpret_cast<const void* const*>(row),
          reinterpret_cast<void* const*>(row + pass.gradients),
          {at<void>(after[0]), at<void>(after[1])},
          settings ? settings->data() + after[2] * settings->shape(1) : nullptr,
          after[3],
          after[4]};
}

void update(int rule, const Table& table, const Rows& settings, int dtype, int gradients,
            double scale, size_t touched) {
  const auto pass = pass_of(table, dtype, gradients, scale, touched);
  const size_t fields = rule ? sizeof(cpu::Adam) : sizeof(cpu::Sgd);
  if (settings.shape(1) * sizeof(double) < fields)
    throw std::invalid_argument("a row of settings is too short");
  nb::gil_scoped_release release;
  for (size_t i = 0; i < table.shape(0); i++)
    cpu::update(cpu::Rule(rule), piece_of(table.data() + i * table.shape(1), pass, &settings),
                pass);
}

// The states hold where the sum goes, and the partial sums of squares.
std::vector<size_t> reduce_gradients(const Table& table, int dtype, int gradients, double scale) {
  const auto pass = pass_of(table, dtype, gradients, scale, 0);
  std::vector<size_t> places(table.shape(0));
  nb::gil_scoped_release release;
  for (size_t i = 0; i < places.size(); i++) {
    const auto piece = piece_of(table.data() + i * table.shape(1), pass, nullptr);
    places[i] =
        cpu::reduce_gradients(piece, pass, piece.state[0], static_cast<double*>(piece.state[1]));
  }
  return places;
}

}  // namespace

void bind_update(nb::module_& m) {
  m.attr("NORM_BLOCK") = cpu::kNormBlock;
  m.def("update", &update, "rule"_a, "table"_a, "settings"_a, "dtype"_a, "gradients"_a, "scale"_a,
        "touched_bytes"_a);
  m.def("reduce_gradients", &reduce_gradients, "table"_a, "dtype"_a, "gradients"_a, "scale"_a);
  m.def(
      "squares",
      [](uintptr_t x, size_t count, int dtype, uintptr_t out) {
        nb::gil_scoped_release release;
        cpu::squares(at<void>(x), count, dtype, at<double>(out));
      },
      "address"_a, "count"_a, "dtype"_a, "out"_a);
  m.def(
      "copy",
      [](uintptr_t to, uintptr_t from, size_t bytes, size_t touched) {
        nb::gil_scoped_release release;
        const shm::CopyOut copy_out(touched);
        copy_out(at<char>(to), at<const char>(from), bytes);
      },
      "to"_a, "source"_a, "nbytes"_a, "touched_bytes"_a);
}

}  // namespace pycomm
