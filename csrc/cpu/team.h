// Threads that work on one problem together and wait for each other at barriers.
//
// The team is drawn from torch's own pool (parallel_for), which promises neither how many threads start nor that two
// chunks ever run at the same time. So a team is whoever joined before its leader, the calling thread, closed the
// list. The leader waits long for everybody, since parallel_for cannot return without the late ones anyway, and a full
// team makes results equal to the bit from run to run; but it does not wait for ever.
#pragma once
#include <stdint.h>

#include "../api.h"
#include "kernels.h"

namespace seqkernels {

struct Team;

// Waits until `size` members have called it with the same barrier of the team. Waiting is a short spin, then sleep.
void barrier_wait(Team* team, int barrier, int size);

// Number of threads worth having for `work` multiply-adds.
int team_threads(double work);

// Whether this is a child of a process that had loaded this library. Its teams are of threads started for a call.
SEQKERNELS_API bool process_was_forked();

// Runs body(context, team, member) on a team of at most `threads`, which has `barriers` barriers.
void run_team(int threads, int barriers, void (*body)(void* context, Team* team, Member member), void* context);

}  // namespace seqkernels
