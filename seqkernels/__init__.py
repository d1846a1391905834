"""Fused LSTM, GRU and RNN layers for PyTorch: change one name, keep everything else.

    >>> lstm = seqkernels.FusedLSTM(8, 16)      # instead of torch.nn.LSTM
    >>> model = seqkernels.fuse(model)          # or: every recurrent layer of a model you have

`seqkernels.explain(module, x)` says which kernel runs; `python -m seqkernels` what this build can do.
"""

from . import _dynamo, functional, init, models
from .frozen import freeze
from .fusion import fuse, unfuse
from .modules import FusedGRU, FusedGRUCell, FusedLSTM, FusedLSTMCell, FusedRNN, FusedRNNCell
from .plan import Explanation, explain

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "FusedGRU",
    "FusedGRUCell",
    "FusedLSTM",
    "FusedLSTMCell",
    "FusedRNN",
    "FusedRNNCell",
    "__version__",
    "explain",
    "freeze",
    "functional",
    "fuse",
    "init",
    "models",
    "unfuse",
]

_dynamo.admit(FusedLSTM, FusedGRU, FusedRNN)
