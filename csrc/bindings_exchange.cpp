// The collectives on a board in which ranks bring or take different parts, for Python.
#include "bindings.h"
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
  m.def("board_scatter",
        [](Board& b, uint64_t fingerprint, uintptr_t in, uintptr_t out, size_t bytes, int root) {
          checked_root(b, root);
          return Prepared{[=, &b](shm::Idle& idle) {
            shm::scatter(b, fingerprint, at<void>(in), at<void>(out), bytes, root, idle);
          }};
        });
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
