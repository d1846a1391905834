// Calls of whole modules from Python that go around torch's dispatcher.
#pragma once
#include <pybind11/pybind11.h>

namespace seqkernels {

// `fastpath`, a forward pass without gradients, and `Frozen`, the same with weights of its own. Both answer None to what
// they do not understand: whoever called has a longer way that does, or that says what is wrong.
void define_fastpath(pybind11::module_& m);
void define_frozen(pybind11::module_& m);

}  // namespace seqkernels
