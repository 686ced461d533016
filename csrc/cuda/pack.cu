// Many arrays ↔ one bucket in one launch; also the chunks of an all-to-all, which are arrays too.
//
// A table describes the pieces (an array and its place in the bucket); packing and unpacking read
// the same table, with source and target exchanged. Every piece is cut into chunks of at most 16
// KiB, whose borders lie on 128-byte lines of the target, and chunks are numbered through all
// pieces. A block
// 1. takes chunks b, b + blocks, b + 2·blocks, …, so large and small pieces balance;
// 2. finds the piece of a chunk by binary search over the last chunks of the pieces, unless it is
//    still the piece of its previous chunk;
// 3. moves the chunk (move.h).
// Pieces do not overlap, so chunks are independent: nothing is ordered, no shared memory.
#include "cuda/grid.h"
#include "cuda/move.h"

namespace pycomm::cuda {

constexpr int64_t kChunkBytes = 16384;  // of the wider of both element types
constexpr int kLineBytes = 128;
constexpr int kInlinePieces = 120;

// The table has four columns of `pieces` 8-byte numbers: the address of the array, its offset in
// the bucket (bytes), its elements, and how many chunks there are up to its end. A piece has
// (elements + kLineBytes − 1) / kChunkElements chunks, rounded up, of which the last may be empty.
enum Column { kArray, kPlace, kElements, kEnd };

struct PackArgs {
  const uint64_t* table;
  int64_t pieces, chunks;
  int64_t source_column, target_column;  // kArray and kPlace, or kPlace and kArray
  uint64_t source_base, target_base;     // added to what the column says: 0, or the bucket
  double factor;
};

struct PackInlineArgs {
  PackArgs pack;
  uint64_t table[4 * kInlinePieces];
};

// The first piece from `first` on whose end lies behind the chunk.
PYCOMM_INLINE int64_t find_piece(const uint64_t* ends, int64_t first, int64_t pieces,
                                 uint64_t chunk) {
  if (chunk < ends[first]) return first;
  int64_t low = first + 1, high = pieces - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (chunk < ends[middle])
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

template <class C>
PYCOMM_INLINE void move_chunk(Array array, int64_t chunk, double factor, Team team) {
  constexpr int64_t elements = kChunkBytes / (C::kFrom > C::kTo ? C::kFrom : C::kTo);
  const int64_t shift = int64_t(array.target % kLineBytes) / C::kTo;
  int64_t begin = chunk * elements - shift, end = begin + elements;
  if (begin < 0) begin = 0;
  if (end > array.count) end = array.count;
  if (begin < end) move<C>(array, begin, end, factor, team);
}

template <class C>
PYCOMM_INLINE void pack_chunks(const PackArgs& a, const uint64_t* table) {
  const uint64_t* ends = table + kEnd * a.pieces;
  const uint64_t* sources = table + a.source_column * a.pieces;
  const uint64_t* targets = table + a.target_column * a.pieces;
  const Team team = {int(threadIdx.x), kBlockThreads};
  int64_t piece = 0;
  for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
    piece = find_piece(ends, piece, a.pieces, uint64_t(chunk));
    const int64_t first = piece ? int64_t(ends[piece - 1]) : 0;
    const Array array = {a.source_base + sources[piece], a.target_base + targets[piece],
                         int64_t(table[kElements * a.pieces + piece])};
    move_chunk<C>(array, chunk - first, a.factor, team);
  }
}

template <int From, int To>
__global__ void __launch_bounds__(kBlockThreads) pack(PackArgs a) {
  pack_chunks<Conversion<From, To>>(a, a.table);
}

// The table comes with the arguments: nothing has to be copied to the device before.
template <int From, int To>
__global__ void __launch_bounds__(kBlockThreads) pack_inline(PackInlineArgs a) {
  pack_chunks<Conversion<From, To>>(a.pack, a.table);
}

}  // namespace pycomm::cuda
