// The ranks of a host in groups, so that a rank need not read the lines of all others.
//
// Up to 16 ranks there are none: each reads n - 1 lines, which is one step. Beyond, the first of a
// group, its leader, reads its members' lines and writes one for the group, which everyone reads:
// of n ranks in g groups, n - g + n * g lines move between caches in two steps, not n * (n - 1).
#pragma once

#include <vector>

namespace pycomm::shm {

constexpr int kMostWithoutGroups = 16;

using Groups = std::vector<std::vector<int>>;  // each in ascending order

// Groups by socket, and where a socket has more than 8 ranks, several of even size: a leader reads
// about as many lines as there are groups on a host of 64 ranks. `sockets` has that of every rank,
// all of which may be the same number where they are not known; it may be empty for that.
Groups groups_of(int size, const std::vector<int>& sockets);

}  // namespace pycomm::shm
