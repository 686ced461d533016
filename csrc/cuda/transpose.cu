// A strided array ↔ a contiguous one ("flat"), where another than the last dimension of the strided
// one is contiguous: a transposition, of one matrix or of each in a batch. A block
// 1. reads a tile into shared memory along the dimension that is contiguous in the source;
// 2. waits for its threads: the tile is complete;
// 3. writes it along the dimension that is contiguous in the target;
// 4. waits again, before the next tile overwrites this one.
// Nothing is ordered among blocks.
#include "cuda/grid.h"
#include "cuda/strides.h"
#include "cuda/words.h"

namespace pycomm::cuda {

// The two contiguous dimensions of a transposition: `fast` is contiguous in the strided array,
// `last` in the flat one.
struct TransposeArgs {
  uint64_t strided, flat;
  int64_t tiles;                                                           // below 2^31
  int64_t fast_size, fast_tiles, fast_magic, fast_shift, fast_flat_bytes;  // bytes: the stride
  int64_t last_size, last_tiles, last_magic, last_shift, last_strided_bytes;
  Dims strided_outer, flat_outer;  // all other dimensions: in both arrays
};

template <int Bytes>
struct TileOf {
  using Item = typename WordOf<Bytes>::T;
  static constexpr int kSide = Bytes < 4 ? 64 : 32;
  static constexpr int kPad = Bytes < 4 ? 4 / Bytes : 1;  // so that columns spread over all banks
  static constexpr int kRows = kBlockThreads / kSide;     // that the threads cover at once
};

// Where a tile begins, and how many items of it exist.
struct TilePlace {
  uint64_t strided, flat;
  int fast, last;
};

template <int Bytes>
PYCOMM_INLINE TilePlace place_of(uint32_t tile, const TransposeArgs& a) {
  constexpr int64_t side = TileOf<Bytes>::kSide;
  const uint32_t next = quotient(tile, uint64_t(a.last_magic), a.last_shift);
  const uint32_t outer = quotient(next, uint64_t(a.fast_magic), a.fast_shift);
  const int64_t last = int64_t(tile - next * uint32_t(a.last_tiles)) * side;
  const int64_t fast = int64_t(next - outer * uint32_t(a.fast_tiles)) * side;
  const int64_t fast_left = a.fast_size - fast, last_left = a.last_size - last;
  return {
      a.strided + offset_bytes(outer, a.strided_outer) + fast * Bytes + last * a.last_strided_bytes,
      a.flat + offset_bytes(outer, a.flat_outer) + last * Bytes + fast * a.fast_flat_bytes,
      int(fast_left < side ? fast_left : side), int(last_left < side ? last_left : side)};
}

template <int Bytes, int Unpack>
__global__ void __launch_bounds__(kBlockThreads) transpose(TransposeArgs a) {
  using T = TileOf<Bytes>;
  using Item = typename T::Item;
  __shared__ Item items[T::kSide][T::kSide + T::kPad];  // by the target's slow dimension
  const int x = int(threadIdx.x) % T::kSide, y = int(threadIdx.x) / T::kSide;
  for (int64_t tile = blockIdx.x; tile < a.tiles; tile += gridDim.x) {
    const TilePlace p = place_of<Bytes>(uint32_t(tile), a);
    const uint64_t source = Unpack ? p.flat : p.strided, target = Unpack ? p.strided : p.flat;
    const int64_t source_bytes = Unpack ? a.fast_flat_bytes : a.last_strided_bytes;
    const int64_t target_bytes = Unpack ? a.last_strided_bytes : a.fast_flat_bytes;
    const int width = Unpack ? p.last : p.fast, height = Unpack ? p.fast : p.last;
#pragma unroll
    for (int row = 0; row < T::kSide; row += T::kRows)
      if (x < width && row + y < height)
        items[x][row + y] = at<const Item>(source + x * Bytes + (row + y) * source_bytes);
    __syncthreads();
#pragma unroll
    for (int row = 0; row < T::kSide; row += T::kRows)
      if (x < height && row + y < width)
        at<Item>(target + x * Bytes + (row + y) * target_bytes) = items[row + y][x];
    __syncthreads();
  }
}

}  // namespace pycomm::cuda
