// Runs all scenarios, or those named: driver [seed [steps [scenario...]]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "scenario.h"

namespace pycomm::test {
namespace {

Settings settings{1, 150};
const char* running = "";

void run(const Scenario& scenario) {
  running = scenario.name;
  const auto start = std::chrono::steady_clock::now();
  scenario.run(settings);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%-12s ok  %5.1f s\n", scenario.name, took.count());
  std::fflush(stdout);
}

}  // namespace

void fail(const std::string& what) {
  std::fprintf(stderr, "%s, seed %llu, %d steps: %s\n", running,
               static_cast<unsigned long long>(settings.seed), settings.steps, what.c_str());
  std::_Exit(1);
}

int main(const std::vector<std::string>& args) {
  if (args.size() > 0) settings.seed = std::stoull(args[0]);
  if (args.size() > 1) settings.steps = std::stoi(args[1]);
  for (const Scenario* scenario : Scenario::all())
    if (args.size() <= 2 || std::count(args.begin() + 2, args.end(), scenario->name))
      run(*scenario);
  return 0;
}

}  // namespace pycomm::test

int main(int argc, char** argv) {
  try {
    return pycomm::test::main({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    pycomm::test::fail(error.what());
  }
}
