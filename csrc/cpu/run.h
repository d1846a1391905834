// Runs a layer's kernel: scratch memory, and the team that enters it.
#pragma once
#include "memory.h"
#include "team.h"

namespace seqkernels {

// `work` is in multiply-adds. The problem's workspace and team are set here.
template <class Problem>
void run_kernel(Problem problem, double work, int64_t (*workspace)(const Problem&),
                void (*kernel)(const Problem&, Member)) {
  const Scratch scratch(workspace(problem));
  problem.workspace = scratch.get();
  const int threads = team_threads(work);
  struct Context {
    const Problem& problem;
    void (*kernel)(const Problem&, Member);
  } context{problem, kernel};
  const int barriers = 1 + 2 + 2 * threads;
  run_team(
      threads, barriers,
      [](void* opaque, Team* team, Member member) {
        const Context& run = *static_cast<Context*>(opaque);
        Problem own = run.problem;
        own.team = team;
        run.kernel(own, member);
      },
      &context);
}

}  // namespace seqkernels
