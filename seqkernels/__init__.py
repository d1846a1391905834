"""Fused LSTM, GRU and RNN layers for PyTorch: change one name, keep everything else.

    >>> lstm = seqkernels.FusedLSTM(8, 16)      # instead of torch.nn.LSTM
    >>> model = seqkernels.fuse(model)          # or: every recurrent layer of a model you have

`seqkernels.explain(module, x)` says which kernel runs; `python -m seqkernels` what this build can do.
"""

from . import functional, init, keras, models, onnx, reference
from ._dynamo import let_dynamo_trace as _let_dynamo_trace
from ._flops import register_flop_formulas as _register_flop_formulas
from .dispatch import get_fastpath_enabled, set_fastpath_enabled
from .frozen import freeze
from .fusion import FusionReport, fuse, unfuse
from .modules import FusedGRU, FusedGRUCell, FusedLSTM, FusedLSTMCell, FusedRNN, FusedRNNCell
from .plan import Explanation, ModelExplanation, explain

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "FusedGRU",
    "FusedGRUCell",
    "FusedLSTM",
    "FusedLSTMCell",
    "FusedRNN",
    "FusedRNNCell",
    "FusionReport",
    "ModelExplanation",
    "__version__",
    "explain",
    "freeze",
    "functional",
    "fuse",
    "get_fastpath_enabled",
    "init",
    "keras",
    "models",
    "onnx",
    "reference",
    "set_fastpath_enabled",
    "unfuse",
]

_let_dynamo_trace(FusedLSTM, FusedGRU, FusedRNN)
_register_flop_formulas()
