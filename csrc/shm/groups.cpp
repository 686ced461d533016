#include "shm/groups.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>

namespace pycomm::shm {
namespace {

constexpr int kMostWithoutGroups = 16;
constexpr size_t kMostMembers = 8;

void cut(const std::vector<int>& ranks, Groups& groups) {
  const size_t pieces = (ranks.size() + kMostMembers - 1) / kMostMembers;
  for (size_t k = 0; k < pieces; k++)
    groups.emplace_back(ranks.begin() + ptrdiff_t(ranks.size() * k / pieces),
                        ranks.begin() + ptrdiff_t(ranks.size() * (k + 1) / pieces));
}

}  // namespace

Groups groups_of(int size, bool crowded, const std::vector<int>& sockets) {
  Groups groups;
  if (!sockets.empty() && sockets.size() != size_t(size))
    throw std::invalid_argument("sockets need one entry for each rank");
  if (crowded || size <= kMostWithoutGroups) return groups;
  auto socket = [&](int rank) { return sockets.empty() ? 0 : sockets[size_t(rank)]; };
  std::vector<int> known;
  for (int first = 0; first < size; first++) {
    if (std::ranges::count(known, socket(first))) continue;
    known.push_back(socket(first));
    std::vector<int> ranks;
    for (int r = first; r < size; r++)
      if (socket(r) == socket(first)) ranks.push_back(r);
    cut(ranks, groups);
  }
  return groups;
}

}  // namespace pycomm::shm
