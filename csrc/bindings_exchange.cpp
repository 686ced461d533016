// The collectives on a board in which ranks bring or take different parts, for Python.
#include <nanobind/stl/pair.h>

#include <algorithm>

#include "bindings.h"
#include "shm/copy.h"
#include "shm/direct.h"
#include "shm/exchange.h"

namespace pycomm {
namespace {

int checked_root(const shm::Board& board, int root) {
  if (root < 0 || root >= board.size()) throw std::invalid_argument("root out of range");
  return root;
}

}  // namespace

void bind_exchange(nb::module_& m) {
  using shm::Board;
  m.def(
      "use_cache_bytes", [](size_t bytes) { return std::exchange(shm::cache_bytes(), bytes); },
      "nbytes"_a, "Copy past the caches what touches so much or more; for tests. Returns the old.");
  m.def("board_reduce", [](Board& b, uint64_t fingerprint, uintptr_t data, size_t count, int dtype,
                           uintptr_t op, double factor, int root) {
    const auto r = reduction(dtype, op, factor, b.size());
    checked_root(b, root);
    return Prepared{[=, &b](shm::Idle& idle) {
      shm::reduce(b, fingerprint, at<void>(data), count, r, root, idle);
    }};
  });
  m.def("board_gather",
        [](Board& b, uint64_t fingerprint, uintptr_t in, uintptr_t out, size_t bytes, int root) {
          checked_root(b, root);
          return Prepared{[=, &b](shm::Idle& idle) {
            shm::gather(b, fingerprint, at<void>(in), at<void>(out), bytes, root, idle);
          }};
        });
  m.def(
      "board_scatter",
      [](Board& b, uint64_t fingerprint, uint64_t detail, const std::vector<int64_t>& header,
         uintptr_t in, uintptr_t out, size_t bytes, nb::object allocate, int root) {
        checked_root(b, root);
        std::function<shm::Chunk(const int64_t*)> make;
        if (!allocate.is_none())
          make = [allocate](const int64_t* words) {
            nb::gil_scoped_acquire acquire;
            std::vector<int64_t> all(words, words + Board::kHeaderWords);
            const auto made = nb::cast<std::pair<uintptr_t, size_t>>(allocate(nb::cast(all)));
            return shm::Chunk{at<char>(made.first), made.second};
          };
        return Prepared{[=, &b](shm::Idle& idle) {
          shm::Call call = fingerprint;
          call.detail = detail;
          call.header = std::span(header).first(std::min(header.size(), Board::kHeaderWords));
          shm::scatter(b, call, at<void>(in), {at<char>(out), bytes}, make, root, idle);
        }};
      },
      "board"_a, "fingerprint"_a, "detail"_a, "header"_a, "source"_a, "out"_a, "nbytes"_a,
      "allocate"_a.none(), "root"_a,
      "`allocate`, or None: makes (address, bytes) of the output from the root's header.");
  m.def("board_all_to_all", [](Board& b, uint64_t fingerprint, uintptr_t in, uintptr_t out,
                               const std::vector<size_t>& sent, const std::vector<size_t>& received,
                               const std::vector<size_t>& starts, size_t longest) {
    if (starts.size() != size_t(b.size())) throw std::invalid_argument("starts need size entries");
    checked(sent, b.size()), checked(received, b.size());
    return Prepared{[=, &b](shm::Idle& idle) {
      const shm::Traffic traffic{sent.data(), received.data(), starts.data(), longest};
      shm::all_to_all(b, fingerprint, at<void>(in), at<void>(out), traffic, idle);
    }};
  });
}

}  // namespace pycomm
