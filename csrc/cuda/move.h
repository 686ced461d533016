// Moves a run of elements from one array to another, at any alignment of either, and converts and
// scales them on the way.
//
// 1. The head: single elements, until the target is aligned to 16 bytes.
// 2. Units of 16 target bytes. Their source bytes are read by aligned words; where the source is
//    misaligned, a word more, and each result is cut out of two neighbours.
// 3. The tail: single elements.
// An aligned word that would lie partly outside of the source array is never read: its unit joins
// the head or the tail. No byte outside of the target run is read or written. Runs are independent
// of each other, so nothing is ordered.
#pragma once

#include "cuda/words.h"

namespace pycomm::cuda {

// Elements of dtype From to dtype To; codes of elements.h. The same integer type: bytes are copied
// and the factor is ignored. Else both have the same accumulator, where the factor is multiplied.
template <int From, int To>
struct Conversion {
  using F = ElementOf<DType(From)>;
  using T = ElementOf<DType(To)>;
  using Source = typename F::S;
  using Target = typename T::S;
  static constexpr int kFrom = sizeof(Source), kTo = sizeof(Target);
  static constexpr int kUnit = 16 / kTo;            // elements
  static constexpr int kUnitBytes = kUnit * kFrom;  // of the source
  static constexpr int kWord = kUnitBytes < 16 ? kUnitBytes : 16, kWords = kUnitBytes / kWord;
  static constexpr int kBatch = kWords < 4 ? 4 / kWords : 1;  // units in flight in a thread
  using Word = typename WordOf<kWord>::T;

  static PYCOMM_INLINE Target convert(Source x, double factor) {
    if constexpr (From == To && F::family == Family::integer)
      return x;
    else
      return T::store(scaled(F::load(x), factor));
  }

  static PYCOMM_INLINE Word16 convert(const Word (&words)[kWords], double factor) {
    if constexpr (From == To && F::family == Family::integer) {
      return words[0];
    } else {
      Source from[kUnit];
      Target to[kUnit];
      memcpy(from, words, sizeof(from));
#pragma unroll
      for (int k = 0; k < kUnit; k++) to[k] = convert(from[k], factor);
      Word16 unit;
      memcpy(&unit, to, sizeof(unit));
      return unit;
    }
  }
};

// Which of `count` threads this one is: they move a run together.
struct Team {
  int thread, count;
};

// The words that hold a unit, as they are in memory.
template <class C, bool Straddles>
struct Unit {
  typename C::Word words[C::kWords + Straddles];

  PYCOMM_INLINE void load(uint64_t aligned) {
#pragma unroll
    for (int k = 0; k < C::kWords + Straddles; k++)
      words[k] = at<const typename C::Word>(aligned + k * C::kWord);
  }

  PYCOMM_INLINE Word16 converted(int shift, double factor) const {
    typename C::Word unit[C::kWords];
#pragma unroll
    for (int k = 0; k < C::kWords; k++) {
      if constexpr (Straddles)
        unit[k] = straddling(words[k], words[k + 1], shift);
      else
        unit[k] = words[k];
    }
    return C::convert(unit, factor);
  }
};

// All loads of a batch come before the first use of one.
template <class C, bool Straddles>
PYCOMM_INLINE void move_units(uint64_t source, uint64_t target, int64_t units, double factor,
                              Team team) {
  constexpr int batch = Straddles ? (C::kBatch + 1) / 2 : C::kBatch;
  const int shift = int(source % C::kWord);
  for (int64_t first = team.thread; first < units; first += batch * team.count) {
    Unit<C, Straddles> loaded[batch];
#pragma unroll
    for (int k = 0; k < batch; k++) {
      const int64_t unit = first + k * team.count;
      if (unit < units) loaded[k].load(source - shift + unit * C::kUnitBytes);
    }
#pragma unroll
    for (int k = 0; k < batch; k++) {
      const int64_t unit = first + k * team.count;
      if (unit < units) put(&at<Word16>(target + unit * 16), loaded[k].converted(shift, factor));
    }
  }
}

template <class C>
PYCOMM_INLINE void move_elements(uint64_t source, uint64_t target, int64_t count, double factor,
                                 Team team) {
  for (int64_t k = team.thread; k < count; k += team.count)
    at<typename C::Target>(target + k * C::kTo) =
        C::convert(at<const typename C::Source>(source + k * C::kFrom), factor);
}

// A whole array, of which runs are moved; both addresses are multiples of their element's size.
struct Array {
  uint64_t source, target;
  int64_t count;
};

// Elements begin ≤ k < end of the array.
template <class C>
PYCOMM_INLINE void move(Array array, int64_t begin, int64_t end, double factor, Team team) {
  const int64_t count = end - begin;
  uint64_t source = array.source + begin * C::kFrom, target = array.target + begin * C::kTo;
  int64_t head = int64_t(-target % 16) / C::kTo;
  const int shift = int((source + head * C::kFrom) % C::kWord);
  if (source + head * C::kFrom < array.source + shift) head += C::kUnit;
  if (head > count) head = count;
  move_elements<C>(source, target, head, factor, team);
  source += head * C::kFrom, target += head * C::kTo;

  int64_t units = (count - head) / C::kUnit;
  const uint64_t last_read = source + units * C::kUnitBytes + (shift ? C::kWord - shift : 0);
  if (units && last_read > array.source + array.count * C::kFrom) units--;
  if (shift)
    move_units<C, true>(source, target, units, factor, team);
  else
    move_units<C, false>(source, target, units, factor, team);
  move_elements<C>(source + units * C::kUnitBytes, target + units * 16,
                   count - head - units * C::kUnit, factor, team);
}

}  // namespace pycomm::cuda
