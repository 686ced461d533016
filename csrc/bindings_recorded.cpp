#include "bindings_recorded.h"

#include <algorithm>
#include <iterator>

namespace pycomm {

const char* const kKindNames[] = {"barrier",        "all_reduce", "broadcast", "all_gather",
                                  "reduce_scatter", "reduce",     "gather",    "scatter",
                                  "all_to_all",     "send",       "recv"};
const char* const kOpNames[] = {"sum", "avg", "prod", "min", "max", "band", "bor", "bxor"};

const char* const kDtypeNames[] = {
    "bool",    "int8",          "int16",       "int32",     "int64",     "uint8",
    "uint16",  "uint32",        "uint64",      "float16",   "bfloat16",  "float32",
    "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"};

namespace {

struct Texts {
  flight::Text kinds[Recorded::kKinds], ops[std::size(kOpNames)], dtypes[std::size(kDtypeNames)];
  flight::Text direct;

  Texts() {
    const auto place = [](const char* name) { return flight::Recorder::instance().text(name); };
    std::transform(std::begin(kKindNames), std::end(kKindNames), kinds, place);
    std::transform(std::begin(kOpNames), std::end(kOpNames), ops, place);
    std::transform(std::begin(kDtypeNames), std::end(kDtypeNames), dtypes, place);
    direct = place("direct");
  }
};

}  // namespace

flight::Call Recorded::call() const {
  static const Texts texts;
  flight::Call call;
  call.bytes = bytes;
  call.tag = tag;
  call.peer = peer;
  call.kind = texts.kinds[kind];
  call.op = op < 0 ? flight::Text(0) : texts.ops[op];
  call.dtype = dtype < 0 ? flight::Text(0) : texts.dtypes[dtype];
  call.algorithm = kind < kSend ? texts.direct : flight::Text(0);
  return call;
}

}  // namespace pycomm
