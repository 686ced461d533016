#include "cpu/update.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <vector>

#include "cpu/reduce.h"

namespace pycomm::cpu {
namespace {

constexpr size_t kBlockBytes = 2048;  // gradients, parameters and state of a block stay in a cache
constexpr int kSum = 0;

template <class T>
T* offset(T* memory, size_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(memory) + bytes;
}

// Sums blocks of gradients in rank order, and scales the sum.
class Sum {
 public:
  Sum(const Piece& piece, const Pass& pass)
      : piece_(piece),
        pass_(pass),
        loops_(update_loops(pass.dtype)),
        reduction_{pass.dtype, kSum, 1.0, pass.gradients},
        inputs_(size_t(pass.gradients)) {}

  // Returns `out`, or the only gradient itself if it is `lent` and needs no change.
  const void* block(size_t at_bytes, size_t count, void* out, bool lent) {
    for (size_t k = 0; k < inputs_.size(); k++) inputs_[k] = offset(piece_.gradients[k], at_bytes);
    if (lent && inputs_.size() == 1 && pass_.scale == 1) return inputs_[0];
    reduce(inputs_.data(), &out, 1, count, reduction_);
    if (pass_.scale != 1) loops_.scale(out, count, pass_.scale);
    return out;
  }

 private:
  const Piece& piece_;
  const Pass& pass_;
  const UpdateLoops& loops_;
  Reduction reduction_;
  std::vector<const void*> inputs_;
};

size_t first_not_finite(const UpdateLoops& loops, const void* block, size_t count, size_t item) {
  size_t i = 0;
  while (i < count && loops.finite(offset(block, i * item), 1)) i++;
  return i;
}

void update_block(Rule rule, const Piece& piece, const UpdateLoops& loops, const void* gradient,
                  size_t at_bytes, size_t count, bool tail) {
  void* parameter = offset(piece.parameters[0], at_bytes);
  auto state = [&](int k) { return piece.state[k] ? offset(piece.state[k], at_bytes) : nullptr; };
  if (rule == Rule::sgd)
    loops.sgd[tail](parameter, gradient, state(0), count,
                    *reinterpret_cast<const Sgd*>(piece.settings));
  else
    loops.adam[tail](parameter, gradient, state(0), state(1), count,
                     *reinterpret_cast<const Adam*>(piece.settings));
}

void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

void prefetch(const void* memory, size_t bytes) {
  constexpr size_t kLine = 64;
  for (size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(offset(memory, i));
}

// The processor's own prefetching stops at the end of a page in each of the many streams.
void prefetch_block(const Piece& piece, const Pass& pass, size_t at, size_t bytes) {
  for (int k = 0; k < pass.gradients; k++) prefetch(offset(piece.gradients[k], at), bytes);
  prefetch(offset(piece.parameters[0], at), bytes);
  for (const void* state : piece.state)
    if (state) prefetch(offset(state, at), bytes);
}

}  // namespace

void update(Rule rule, const Piece& piece, const Pass& pass) {
  alignas(64) std::array<char, kBlockBytes> sum;
  const UpdateLoops& loops = update_loops(pass.dtype);
  const size_t item = item_bytes(pass.dtype), block = kBlockBytes / item;
  Sum gradients(piece, pass);
  const auto publish = pass.past_caches ? loops.stream : copy;
  const size_t body = piece.count - piece.tail;
  for (size_t i = 0, n; i < piece.count; i += n) {
    const bool tail = i >= body;
    n = std::min(block, (tail ? piece.count : body) - i);
    const size_t at = i * item;
    const size_t next = std::min(i + n + block, piece.count) - std::min(i + n, piece.count);
    prefetch_block(piece, pass, (i + n) * item, next * item);
    const void* gradient = gradients.block(at, n, sum.data(), true);
    update_block(rule, piece, loops, gradient, at, n, tail);
    for (int k = 1; k < pass.parameters; k++)
      publish(offset(piece.parameters[k], at), offset(piece.parameters[0], at), n * item);
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);  // what was streamed comes before all later
}

void squares(const void* x, size_t count, int dtype, double* out) {
  const UpdateLoops& loops = update_loops(dtype);
  for (size_t i = 0; i < count; i += kNormBlock)
    *out++ = loops.squares(offset(x, i * item_bytes(dtype)), std::min(kNormBlock, count - i));
}

size_t reduce_gradients(const Piece& piece, const Pass& pass, void* out, double* squares) {
  const UpdateLoops& loops = update_loops(pass.dtype);
  const size_t item = item_bytes(pass.dtype);
  Sum gradients(piece, pass);
  size_t bad = piece.count;
  for (size_t i = 0; i < piece.count; i += kNormBlock) {
    const size_t n = std::min(kNormBlock, piece.count - i);
    void* block = offset(out, i * item);
    gradients.block(i * item, n, block, false);
    squares[i / kNormBlock] = loops.squares(block, n);
    if (bad == piece.count && !loops.finite(block, n))
      bad = i + first_not_finite(loops, block, n, item);
  }
  return bad;
}

}  // namespace pycomm::cpu
