// Runs kernels: the team that enters one, and a layer's scratch memory.
#pragma once
#include "memory.h"
#include "team.h"

namespace seqkernels {

// Runs body(team, member) on a team: run_team for a body of any type.
template <class Body>
void run_team(int threads, int barriers, const Body& body) {
  run_team(
      threads, barriers,
      [](void* context, Team* team, Member member) { (*static_cast<const Body*>(context))(team, member); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// `work` is in multiply-adds. The kernel's arguments lack threads, workspace and team, which are set here.
template <class Arguments>
void run_kernel(Arguments arguments, double work, int64_t (*workspace)(const Arguments&),
                void (*kernel)(const Arguments&, Member)) {
  const int threads = arguments.threads = team_threads(work), barriers = 1 + 2 + 2 * threads;
  const Scratch scratch(workspace(arguments));
  arguments.workspace = scratch.get();
  run_team(threads, barriers, [&](Team* team, Member member) {
    Arguments own = arguments;
    own.team = team;
    kernel(own, member);
  });
}

}  // namespace seqkernels
