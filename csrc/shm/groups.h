// The ranks of a host in groups, so that a rank need not read the lines of all others.
//
// Up to 16 ranks there are none: each reads n - 1 lines, which is one step. Beyond, the first of a
// group, its leader, reads its members' lines and writes one for the group, which everyone reads:
// of n ranks in g groups, about n * (1 + g) lines move between caches in two steps, not n * (n -
// 1). Ranks that share cores have no groups either: the second step would be another round of
// turns.
#pragma once

#include <vector>

namespace pycomm::shm {

using Groups = std::vector<std::vector<int>>;  // each in ascending order

// Groups by socket, and several of even size where one has more than 8 ranks: of 64, a leader then
// reads 7 lines and everyone 8. `crowded`: ranks share cores. `sockets`: each rank's, any number
// where it is not known; empty for none known.
Groups groups_of(int size, bool crowded, const std::vector<int>& sockets);

}  // namespace pycomm::shm
