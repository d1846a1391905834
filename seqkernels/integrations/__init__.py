"""Adapters for packages with loops of their own over recurrent layers, where `seqkernels.fuse` is not enough.

    `seqkernels.integrations.sb3`       RecurrentPPO of sb3-contrib
    `seqkernels.integrations.torchrl`   LSTMModule and GRUModule of TorchRL

Each has a `fuse` and an `unfuse`, as seqkernels itself. The packages are optional: `import seqkernels`
imports nothing of this, and a `fuse` whose package is not installed raises ImportError, which says how to get
it.
"""
