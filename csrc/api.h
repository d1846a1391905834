// What the library libseqkernels shows to others: the module of each Python (csrc/python) calls it, and programs in C++ may.
// The ops register themselves when it is loaded. All else in it is hidden.
#pragma once

#define SEQKERNELS_API [[gnu::visibility("default")]]
