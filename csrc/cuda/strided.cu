// A strided array of up to 8 dimensions ↔ a contiguous one ("flat"); the host chooses a kernel.
//
// strided_rows:  rows of contiguous bytes; a warp moves up to 4 KiB of a row (move.h).
// strided_items: anything else, one item a thread, consecutive threads at consecutive flat places.
// Nothing is ordered among blocks.
#include "cuda/grid.h"
#include "cuda/move.h"
#include "cuda/strides.h"

namespace pycomm::cuda {

constexpr int64_t kRowChunkBytes = 4096;
constexpr int kItemsInFlight = 4;

struct StridedArgs {
  uint64_t strided, flat;
  int64_t count;      // items, or chunks of rows
  int64_t row_bytes;  // this and what follows: rows only
  int64_t row_chunks;
  uint64_t row_magic;  // of row_chunks
  int64_t row_shift;
  Dims dims;  // of items, or of rows
};

// One item a thread. Index is uint32_t below 2^31 items.
template <int Bytes, int Unpack, int Bits>
__global__ void __launch_bounds__(kBlockThreads) strided_items(StridedArgs a) {
  using Item = typename WordOf<Bytes>::T;
  using Index = typename WordOf<Bits / 8>::T;
  const int64_t threads = int64_t(gridDim.x) * kBlockThreads;
  const int64_t thread = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  for (int64_t first = thread; first < a.count; first += kItemsInFlight * threads) {
    Item items[kItemsInFlight];
    uint64_t places[kItemsInFlight];
#pragma unroll
    for (int k = 0; k < kItemsInFlight; k++) {
      const int64_t item = first + k * threads;
      if (item >= a.count) continue;
      places[k] = a.strided + offset_bytes(Index(item), a.dims);
      items[k] = at<const Item>(Unpack ? a.flat + item * Bytes : places[k]);
    }
#pragma unroll
    for (int k = 0; k < kItemsInFlight; k++) {
      const int64_t item = first + k * threads;
      if (item < a.count) at<Item>(Unpack ? places[k] : a.flat + item * Bytes) = items[k];
    }
  }
}

template <int Unpack>
__global__ void __launch_bounds__(kBlockThreads, 3) strided_rows(StridedArgs a) {
  using Bytes = Conversion<int(DType::u8), int(DType::u8)>;
  const Team team = {int(threadIdx.x % kWarpThreads), kWarpThreads};
  const int64_t warp = int64_t(blockIdx.x) * kBlockWarps + threadIdx.x / kWarpThreads;
  for (int64_t chunk = warp; chunk < a.count; chunk += int64_t(gridDim.x) * kBlockWarps) {
    const int64_t row = int64_t(quotient(uint64_t(chunk), a.row_magic, a.row_shift));
    const int64_t begin = (chunk - row * a.row_chunks) * kRowChunkBytes;
    const uint64_t strided = a.strided + offset_bytes(uint64_t(row), a.dims);
    const uint64_t flat = a.flat + row * a.row_bytes;
    const Array array = {Unpack ? flat : strided, Unpack ? strided : flat, a.row_bytes};
    const int64_t end = begin + kRowChunkBytes;
    move<Bytes>(array, begin, end < a.row_bytes ? end : a.row_bytes, 1.0, team);
  }
}

}  // namespace pycomm::cuda
