// The one pass for reduce, update and publish: ranks own pieces of symmetric buffers, and what they
// make of these is compared with what one thread makes of everyone's gradients.
#include "cpu/update.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/reduce.h"
#include "levels.h"
#include "ranks.h"
#include "shm/direct.h"
#include "values.h"

namespace pycomm::test {
namespace {

// What all ranks draw alike: an optimizer, and a parameter in pieces, one a rank.
struct Training {
  Training(Random& random, int size)
      : rule(cpu::Rule(random.below(2))),
        dtype(kFloats[random.below(std::size(kFloats))]),
        item(cpu::item_bytes(int(dtype))),
        content(random.next()),
        norms(random.once_in(3)),
        shared(random.once_in(3)),
        past_caches(random.once_in(3)),
        scale(random.once_in(2) ? 1.0 : 0.375),
        momentum(random.once_in(3) ? 0.0 : 0.9),
        decay(random.once_in(2) ? 0.0 : 0.01),
        nesterov(random.once_in(2)) {
    const size_t longest = random.once_in(3) ? 6000 : 100;
    for (int p = 0; p < size; p++)
      bounds.push_back(bounds.back() +
                       (norms ? cpu::kNormBlock * random.below(3) : random.below(longest)));
    if (norms) bounds.back() += random.below(100);
  }

  size_t count() const { return bounds.back(); }
  size_t bytes() const { return count() * item; }

  // The fields of an Sgd or an Adam.
  std::vector<double> settings(int step) const {
    if (rule == cpu::Rule::sgd)
      return {0.1, decay, momentum, 0.2, double(nesterov), 0, double(step == 0)};
    return {1 - decay, decay / 2, 0.1, 0.99, 0.01, 0.3, 1e-6, 0.05, double(nesterov)};
  }

  // Of elements [begin, end), those that fill no vector of torch's loops over a narrow float.
  size_t tail(size_t begin, size_t end) const {
    const size_t body = item > 2 ? count() : count() - count() % (64 / item);
    return end - std::min(end, std::max(begin, body));
  }

  void gradient(char* to, int rank, int step) const {
    fill(to, count(), dtype, Random(content, rank, step));
  }

  cpu::Rule rule;
  DType dtype;
  size_t item;
  uint64_t content;
  bool norms, shared, past_caches;
  double scale, momentum, decay;
  bool nesterov;
  std::vector<size_t> bounds{0};
};

// Elements [begin, end) of a parameter, and what its owner keeps of them.
class Part {
 public:
  Part(const Training& training, size_t begin, size_t end)
      : training_(training), begin_(begin), end_(end) {
    for (auto& state : states) state.resize((end - begin) * training.item);
    squares.resize((end - begin + cpu::kNormBlock - 1) / cpu::kNormBlock);
  }

  // Writes the sum of gradients over `sum`, where it lies in the whole, and updates from there.
  size_t reduce(std::vector<char*> gradients, char* sum) {
    return cpu::reduce_gradients(piece(at(gradients), {}, {}), pass(gradients.size(), 0),
                                 sum + begin_ * training_.item, squares.data());
  }

  void update(std::vector<char*> gradients, std::vector<char*> parameters, int step, double scale) {
    auto settings = training_.settings(step);
    cpu::Pass all = pass(gradients.size(), parameters.size());
    all.scale = scale;
    cpu::update(training_.rule, piece(at(gradients), at(parameters), settings), all);
  }

  size_t bytes() const { return states[0].size(); }

  std::vector<char> states[2];
  std::vector<double> squares;

 private:
  std::vector<void*> at(const std::vector<char*>& wholes) const {
    std::vector<void*> parts;
    for (char* whole : wholes) parts.push_back(whole + begin_ * training_.item);
    return parts;
  }

  cpu::Pass pass(size_t gradients, size_t parameters) const {
    return {int(training_.dtype), int(gradients), int(parameters), training_.scale,
            training_.past_caches};
  }

  cpu::Piece piece(const std::vector<void*>& gradients, const std::vector<void*>& parameters,
                   const std::vector<double>& settings) {
    return {gradients.data(), parameters.data(), {states[0].data(), states[1].data()},
            settings.data(),  end_ - begin_,     training_.tail(begin_, end_)};
  }

  const Training& training_;
  size_t begin_, end_;
};

// One thread that has everything.
class Reference {
 public:
  Reference(const Training& training, int size)
      : parameter(training.bytes()),
        whole(training, 0, training.count()),
        training_(training),
        gradients_(size_t(size), std::vector<char>(training.bytes())) {
    fill(parameter.data(), training.count(), training.dtype, Random(training.content));
  }

  void step(int step) {
    std::vector<char*> all;
    for (size_t p = 0; p < gradients_.size(); p++) {
      training_.gradient(gradients_[p].data(), int(p), step);
      all.push_back(gradients_[p].data());
    }
    if (training_.norms) {
      whole.reduce(all, all[0]);
      all.resize(1);
    }
    whole.update(all, {parameter.data()}, step, training_.norms ? 0.5 : training_.scale);
  }

  std::vector<char> parameter;
  Part whole;

 private:
  const Training& training_;
  std::vector<std::vector<char>> gradients_;
};

// Where the buffers of all ranks lie; each writes its own entries.
struct Places {
  std::vector<char*> gradients, parameters;
};

// What one rank does in a training.
class Trainee {
 public:
  Trainee(Rank& rank, const Training& training, Places& places)
      : rank_(rank),
        training_(training),
        places_(places),
        me_(size_t(rank.me())),
        begin_(training.bounds[me_]),
        gradient_(training.bytes(), true, 16 * rank.own.below(4)),
        parameter_(training.shared && me_ ? 0 : training.bytes(), true, 16 * rank.own.below(4)),
        own_(training, begin_, training.bounds[me_ + 1]),
        reference_(training, rank.size()) {
    places.gradients[me_] = gradient_.data();
    places.parameters[me_] = parameter_.data();
    if (parameter_.bytes())
      fill(parameter_.data(), training.count(), training.dtype, Random(training.content));
  }

  void step(int step) {
    training_.gradient(gradient_.data(), rank_.me(), step);
    together();
    if (training_.norms) {
      own_.reduce(places_.gradients, gradient_.data());
      own_.update({gradient_.data()}, copies(), step, 0.5);
    } else {
      own_.update(places_.gradients, copies(), step, training_.scale);
    }
    together();
    reference_.step(step);
    compare();
  }

  // One rank's gradient is not finite: its place is found by who owns it, and by nobody else.
  void find_infinity() {
    const size_t place = rank_.shared.below(training_.count());
    if (rank_.me() == int(rank_.shared.below(size_t(rank_.size()))))
      with_element(training_.dtype, [&]<class El>(El element) {
        store(gradient_.data(), place, std::numeric_limits<typename El::A>::infinity(), element);
      });
    together();
    const size_t end = training_.bounds[me_ + 1],
                 found = own_.reduce(places_.gradients, gradient_.data());
    const bool mine = place >= begin_ && place < end;
    expect(found == (mine ? place : end) - begin_, "the place of what is not finite");
    together();
  }

  void together() { shm::barrier(rank_.board, 0, rank_.idle); }

 private:
  // Its own comes first, unless all share that of rank 0.
  std::vector<char*> copies() const {
    if (training_.shared) return {places_.parameters[0]};
    auto copies = places_.parameters;
    std::swap(copies[0], copies[me_]);
    return copies;
  }

  void compare() const {
    const auto& want = reference_.parameter;
    expect(std::equal(want.begin(), want.end(), copies()[0]), "an updated parameter");
    const size_t at = begin_ * training_.item;
    for (int k = 0; k < 2; k++)
      expect(std::equal(own_.states[k].begin(), own_.states[k].end(),
                        reference_.whole.states[k].begin() + ptrdiff_t(at)),
             "the state of a piece");
    const auto& squares = reference_.whole.squares;
    if (training_.norms)
      expect(std::equal(own_.squares.begin(), own_.squares.end(),
                        squares.begin() + ptrdiff_t(begin_ / cpu::kNormBlock)),
             "sums of squares");
  }

  Rank& rank_;
  const Training& training_;
  Places& places_;
  size_t me_, begin_;
  Buffer gradient_, parameter_;
  Part own_;
  Reference reference_;
};

void train(Rank& rank, Places& places) {
  const Training training(rank.shared, rank.size());
  Trainee trainee(rank, training, places);
  trainee.together();
  for (int step = 0; step < 3; step++) {
    rank.dawdle();
    trainee.step(step);
  }
  if (training.norms && training.count()) trainee.find_infinity();
  trainee.together();  // all are done with everyone's memory
}

void run(const Settings& settings) {
  for (int size = 1; size <= 4; size++) {
    Places places{std::vector<char*>(size_t(size)), std::vector<char*>(size_t(size))};
    at_every_level([&] {
      play_ranks({size, true, 60, settings.seed + uint64_t(size)}, [&](Rank& rank) {
        for (int k = 0; k < settings.steps / 10; k++) train(rank, places);
      });
    });
  }
}

const Scenario updates("updates", run);

}  // namespace
}  // namespace pycomm::test
