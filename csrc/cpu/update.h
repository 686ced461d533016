// One pass over a shard: reduce the gradients of all ranks, update, and publish the parameters.
//
// The arithmetic is that of torch.optim's SGD, Adam and AdamW on one tensor: the same operations in
// the same order, fused where torch's kernels fuse a multiplication with an addition, and rounded
// to the parameters' type where torch writes a tensor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycomm::cpu {

constexpr size_t kNormBlock = 4096;  // elements whose squares are one partial sum

struct Sgd {
  double lr, weight_decay, momentum, dampening, nesterov, maximize;
  double first;  // whether there is no momentum yet, which then becomes the gradient
};

struct Adam {
  double decay;        // multiplies the parameter first: 1 - lr · weight_decay of AdamW
  double l2;           // adds so much of the parameter to the gradient: weight_decay of Adam
  double weight;       // 1 - beta1
  double beta2, keep;  // keep: 1 - beta2
  double correction;   // sqrt(1 - beta2^step)
  double eps;
  double step_size;  // lr / (1 - beta1^step)
  double maximize;
};

// The loops over one block of elements of one type.
struct UpdateLoops {
  void (*scale)(void* gradient, size_t count, double factor);
  double (*squares)(const void* gradient, size_t count);
  bool (*finite)(const void* gradient, size_t count);
  // The second of each is for the tail of a parameter, see Piece.
  void (*sgd[2])(void* parameter, const void* gradient, void* momentum, size_t count, const Sgd&);
  void (*adam[2])(void* parameter, const void* gradient, void* mean, void* mean_of_squares,
                  size_t count, const Adam&);
  void (*stream)(void* to, const void* from, size_t bytes);  // past the caches; a fence must follow
};

// Null pointers for types other than float16, bfloat16, float32 and float64.
const UpdateLoops& update_loops(int dtype);

enum class Rule : int { sgd, adam };

// Elements of one parameter that this rank owns.
struct Piece {
  const void* const* gradients;  // one of each rank, in rank order
  void* const* parameters;       // the first one is read, too
  void* state[2];                // SGD: momentum; Adam: exp_avg, exp_avg_sq
  const double* settings;        // an Sgd or an Adam
  size_t count;
  size_t tail;  // the last of them, which torch's vector code leaves over in a narrow float
};

// What all pieces of a call have in common.
struct Pass {
  int dtype;
  int gradients, parameters;  // how many of them
  double scale;               // of the sum of gradients
  bool past_caches = false;   // how all parameters but the first are written
};

void update(Rule, const Piece&, const Pass&);

// Writes the sum of squares of every kNormBlock elements.
void squares(const void* x, size_t count, int dtype, double* out);

// Writes the scaled sum to `out`, which may be one of the gradients, and the sum of squares of
// every kNormBlock elements. Returns the place of the first element that is not finite, or count.
size_t reduce_gradients(const Piece&, const Pass&, void* out, double* squares);

}  // namespace pycomm::cpu
