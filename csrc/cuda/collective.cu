// Collectives of ranks with a GPU each, ordered by the meetings in these kernels (meet.h).
//
// All ranks launch the same kernel on the same number of blocks; a launch begins when all before it
// on its stream is done. Between ranks:
//
// reduce_between, one shot (all_reduce of few bytes)
//   1. a block copies its share of the rank's input into its slot;
//   2. blocks meet;
//   3. it reduces that share of all ranks' slots, in their order, into the rank's output.
//   No peer reads the input, so the output may be the input. The slot may be read after the kernel
//   has ended: the next launch uses the other one, and a rank that starts the launch after that
//   has met its peers in the one between, when they were done with this one.
// reduce_between, otherwise (the second shot of an all_reduce is to write into all ranks' arrays)
//   1. blocks meet: all sources are there;
//   2. the grid reduces sources, in their order, into targets, in any rank's memory; no element is
//      written that another rank reads or writes;
//   3. blocks meet: no source is read any more, all targets are written. A kernel ends when all its
//      blocks have met all peers', so what comes next on the stream sees that.
// copy_between
//   The same with copies instead of a reduction: a rank reads its peers' sources into its own
//   targets.
// meet_only
//   One meeting, before and after a kernel that knows nothing of ranks: a user's reduction.
//
// The arithmetic is reduce.h's, in rank order: which of the kernels is launched changes no bit.
#include "cuda/meet.h"
#include "cuda/move.h"
#include "cuda/reduce.h"

namespace pycomm::cuda {

struct ReduceBetweenArgs {
  Group group;
  int64_t count;  // elements; of one shot all of them, else those that this rank reduces
  int64_t share;  // one shot: the elements of a block, at most a slot; else 0
  int64_t inputs_count;
  int64_t outputs_count;
  double divisor;  // of avg
  double factor;   // of premul_sum
  uint64_t input;  // one shot: this rank's; `inputs` are then the ranks' boards
  uint64_t inputs[kMostRanks];
  uint64_t outputs[kMostRanks];
};

struct CopyBetweenArgs {
  Group group;
  int64_t copies;
  uint64_t sources[kMostRanks];
  uint64_t targets[kMostRanks];
  int64_t bytes[kMostRanks];
};

namespace {

using Bytes = Conversion<int(DType::u8), int(DType::u8)>;

// The arrays at args.inputs and args.outputs, each from some bytes on.
struct Arrays {
  static constexpr void* partial_in = nullptr;
  static constexpr void* partial_out = nullptr;
  const ReduceBetweenArgs& args;
  int64_t count, inputs_count, outputs_count;
  double divisor, factor;
  int64_t skipped_in, skipped_out;

  __device__ Arrays(const ReduceBetweenArgs& a, int64_t elements, int64_t in, int64_t out)
      : args(a),
        count(elements),
        inputs_count(a.inputs_count),
        outputs_count(a.outputs_count),
        divisor(a.divisor),
        factor(a.factor),
        skipped_in(in),
        skipped_out(out) {}

  __device__ const void* input(int64_t k) const { return &at<char>(args.inputs[k] + skipped_in); }
  __device__ void* output(int64_t k) const { return &at<char>(args.outputs[k] + skipped_out); }
};

// Copies the block's share of the input into its slot; returns how it is to be reduced.
template <class S>
__device__ Arrays stage(const ReduceBetweenArgs& a, const Meeting& meeting) {
  const int64_t begin = blockIdx.x * a.share, rest = a.count - begin;
  const int64_t count = rest < a.share ? rest : a.share, size = int64_t(sizeof(S));
  const char* slot = meeting.next_slot(a.group.rank);
  const uint64_t to = reinterpret_cast<uintptr_t>(slot);
  move<Bytes>({a.input + begin * size, to, count * size}, 0, count * size, 1.0,
              {int(threadIdx.x), kBlockThreads});
  return Arrays(a, count, int64_t(to - a.group.boards[a.group.rank]), begin * size);
}

// Chunks of all copies are dealt out to the blocks of the grid, those of each from another one on.
__device__ inline void copy(const CopyBetweenArgs& a) {
  constexpr int64_t chunk = 16384;
  for (int64_t k = 0; k < a.copies; k++) {
    const Array array = {a.sources[k], a.targets[k], a.bytes[k]};
    const int64_t first = (blockIdx.x + k) % gridDim.x * chunk;
    for (int64_t begin = first; begin < array.count; begin += gridDim.x * chunk) {
      const int64_t end = begin + chunk < array.count ? begin + chunk : array.count;
      move<Bytes>(array, begin, end, 1.0, {int(threadIdx.x), kBlockThreads});
    }
  }
}

}  // namespace

template <int D, int O>
__global__ void __launch_bounds__(kBlockThreads) reduce_between(ReduceBetweenArgs a) {
  using El = ElementOf<DType(D)>;
  constexpr int width = kWidth<typename El::S>;
  const bool one_shot = a.share > 0;
  Meeting meeting(a.group);
  const Arrays arrays = one_shot ? stage<typename El::S>(a, meeting) : Arrays(a, a.count, 0, 0);
  if (!meeting.meet()) return;
  if (arrays.count > 0) walk<El, Op(O), width>(arrays, one_shot ? Blocks{0, 1} : whole_grid());
  if (!one_shot) meeting.meet();
}

template <int = 0>
__global__ void __launch_bounds__(kBlockThreads) copy_between(CopyBetweenArgs a) {
  Meeting meeting(a.group);
  if (!meeting.meet()) return;
  copy(a);
  meeting.meet();
}

template <int = 0>
__global__ void __launch_bounds__(kBlockThreads) meet_only(Group group) {
  Meeting(group).meet();
}

}  // namespace pycomm::cuda
