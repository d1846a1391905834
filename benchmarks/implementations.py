"""The same layer with the same parameters, run by seqkernels, by torch.nn, and by ONNX Runtime where it is
installed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seqkernels
from benchmarks import torch_loops
from benchmarks.cases import GATES, Case
from benchmarks.timing import OURS, Call, InterleavedTiming, quantiles

TORCH, ONNX, GEMM = "torch.nn", "onnxruntime", "gemm"
TORCH_HALF = "torch.nn float16"
OURS_WIDE = f"{OURS} float32"
LAYERS = {
    "lstm": (nn.LSTM, seqkernels.FusedLSTM, nn.LSTMCell, seqkernels.FusedLSTMCell),
    "gru": (nn.GRU, seqkernels.FusedGRU, nn.GRUCell, seqkernels.FusedGRUCell),
    "rnn": (nn.RNN, seqkernels.FusedRNN, nn.RNNCell, seqkernels.FusedRNNCell),
}
# In torch's own operations: what torch.nn does not have, by cell and form.
LOOPS: dict[tuple[str, str], type[torch_loops.CellLoop]] = {
    ("gru", "norm=layer"): torch_loops.LayerNormGRULoop,
    ("gru", "reset_after=False"): torch_loops.ResetBeforeLoop,
    ("lstm", "norm=layer"): torch_loops.LayerNormLSTMLoop,
    ("lstm", "norm=layer-joint"): torch_loops.JointLayerNormLSTMLoop,
}
# Largest error allowed before a case is timed, relative to the RMS of torch.nn's result in float32, on a GPU
# in float64. TF32 and float16 have 10 bits of mantissa, bfloat16 has 7.
TOLERANCE = {"float32": 1e-4, "tf32": 16 * 2**-10, "float16": 16 * 2**-10, "bfloat16": 16 * 2**-8}
BFLOAT16_WEIGHTS = "bfloat16 weights"
GEMM_SIZE = 1024
# What holds our kernels, torch's own, oneDNN and MKL to an instruction set: `make bench ISA=` sets them all.
HOLDS = ("SEQKERNELS_CPU_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
HELD_BY = {name: os.environ[name] for name in HOLDS if os.environ.get(name)}
# Whether this CPU could do more than that.
HELD_BACK = bool(HELD_BY) and seqkernels._C.cpu_isas()[-1] != HELD_BY.get(HOLDS[0])
GEMM_FLOPS = 2 * GEMM_SIZE**3


def set_tf32(allowed: bool) -> None:
    """Whether float32 products on a GPU, recurrent or not, may be done in TF32."""
    torch._C._set_cudnn_allow_tf32(allowed)  # torch's test utilities forbid to set torch.backends.cudnn's
    torch.backends.cuda.matmul.allow_tf32 = allowed


class Problem:
    """One case's modules and inputs, and every implementation's way to run it.

    A case in TF32 is one in float32; `set_tf32` makes the difference.
    """

    def __init__(self, case: Case, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.dtype = torch.float32 if case.dtype == "tf32" else getattr(torch, case.dtype)
        theirs, ours, their_cell, our_cell = LAYERS[case.cell]
        self.theirs: nn.Module
        self.ours: nn.Module
        sizes = (case.input_size, case.hidden)
        if case.variant == "Cell":
            self.theirs, self.ours = their_cell(*sizes), our_cell(*sizes)
            shape: tuple[int, ...] = (case.batch,)
        else:
            options: dict[str, Any] = {"num_layers": case.layers, "bidirectional": case.directions == 2}
            options |= {"proj_size": case.proj_size} if case.proj_size else {}
            loop = LOOPS.get((case.cell, case.form))
            self.theirs = loop(*sizes) if loop else theirs(*sizes, **options)
            self.ours = ours(*sizes, **options, **case.beyond_torch)
            shape = (case.seq_len, case.batch)
        for module in (self.theirs, self.ours):
            module.to(device, self.dtype).train(case.work == "training")
        self.ours.load_state_dict(self.theirs.state_dict())
        if case.work == "frozen step":
            self.ours = seqkernels.freeze(
                self.theirs, torch.bfloat16 if case.variant == BFLOAT16_WEIGHTS else torch.float32
            )
        self.x = torch.randn(*shape, case.input_size, device=device).to(self.dtype)
        state_shape = (*([] if case.variant == "Cell" else [1]), case.batch, case.hidden)
        states = {"lstm": 2}.get(case.cell, 1) if case.work.endswith("step") else 0
        self.states = tuple(
            torch.randn(state_shape, device=device).to(self.dtype) for _ in range(states)
        )  # h, and c of an LSTM
        rows = (sum(case.lengths),) if case.packed else shape
        width = case.directions * case.output_size
        self.grad_output = torch.randn(*rows, width, device=device).to(self.dtype)

    def cast(self, dtype: torch.dtype) -> Problem:
        """The same problem in another dtype, as torch.nn has it."""
        other = copy.copy(self)
        other.dtype = dtype
        other.theirs = copy.deepcopy(self.theirs).to(dtype)
        other.x, other.grad_output = self.x.to(dtype), self.grad_output.to(dtype)
        other.states = tuple(state.to(dtype) for state in self.states)
        return other

    def input_of(self, x: Tensor) -> Tensor | PackedSequence:
        return pack_padded_sequence(x, torch.tensor(self.case.lengths)) if self.case.packed else x

    def mode(self) -> torch.inference_mode:
        """To be entered around calls that are not to train; once, and not in every call, as users do it."""
        return torch.inference_mode(self.case.work != "training")

    def run(self, module: nn.Module) -> Callable[[], list[Tensor]]:
        """A call that does the case's work with the module and returns its results: the output, then all
        gradients."""
        if self.case.work != "training":
            x = self.input_of(self.x)
            hx = (self.states if self.case.cell == "lstm" else self.states[0]) if self.states else None

            def infer() -> list[Tensor]:
                result = module(x, hx)
                output = result if isinstance(result, Tensor) else result[0]
                return [output.data if isinstance(output, PackedSequence) else output]

            return infer

        leaf = self.x.clone().requires_grad_()
        packed = self.input_of(leaf)  # packing is the caller's work, and the same for everybody
        wanted = [packed.data if isinstance(packed, PackedSequence) else packed, *module.parameters()]

        def train() -> list[Tensor]:
            output = module(packed)[0]
            output = output.data if isinstance(output, PackedSequence) else output
            return [output.detach(), *torch.autograd.grad(output, wanted, self.grad_output)]

        return train

    def implementations(self) -> dict[str, Call]:
        """Everybody who can run the case, ours in float32 beside bfloat16, and the matrix product that tells
        what the machine gives."""
        a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE).to(self.dtype)
        product = torch.empty_like(a)
        calls: dict[str, Call] = {OURS: self.run(self.ours), TORCH: self.run(self.theirs)}
        onnx = self.case.work != "training" and not self.case.packed and self.dtype == torch.float32
        onnx = onnx and not self.case.proj_size and not self.case.norm
        if onnx and not HELD_BACK:  # nothing holds its kernels
            session = onnx_call(self)
            calls |= {ONNX: session} if session else {}
        if self.dtype == torch.bfloat16:
            wide = self.cast(torch.float32)
            calls[OURS_WIDE] = wide.run(copy.deepcopy(self.ours).float())
        return calls | {GEMM: lambda: torch.mm(a, b, out=product)}

    def gpu_implementations(self) -> dict[str, Call]:
        """Ours, cuDNN behind torch.nn, and that in float16, for which it has its fastest kernels."""
        calls: dict[str, Call] = {OURS: self.run(self.ours), TORCH: self.run(self.theirs)}
        if self.dtype != torch.float16:
            half = self.cast(torch.float16)
            calls[TORCH_HALF] = half.run(half.theirs)
        return calls

    def check(self, calls: dict[str, Call], also: Iterable[str] = ()) -> dict[str, float]:
        """The largest error of each that is checked, ours, ONNX Runtime and those of `also`; raises where one
        is wrong, so that it is not timed.

        Where torch.nn's own result in this dtype is measured too, on a GPU or as one of `also`, a larger
        error than the tolerance is none if torch.nn's is as large.
        """
        on_gpu = self.device != "cpu"
        exact = self.cast(torch.float64 if on_gpu else torch.float32)
        truth = exact.run(exact.theirs)()
        errors: dict[str, list[float]] = {}
        for name in (TORCH, OURS) if on_gpu else calls.keys() & {OURS, ONNX, *also}:
            results: Any = calls[name]()
            errors[name] = [error_of(*pair) for pair in zip(results, truth, strict=True)]
        for name in errors.keys() - {TORCH}:
            for i, error in enumerate(errors[name]):
                rounded = name == OURS and self.case.variant == BFLOAT16_WEIGHTS
                tolerance = TOLERANCE["bfloat16" if rounded else self.case.dtype]
                allowed = max(tolerance, errors[TORCH][i] if TORCH in errors else 0.0)
                assert error <= allowed, f"{name}, result {i}: error {error:.2e} of the RMS"
        return {name: max(values) for name, values in errors.items()}


def error_of(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the RMS of what is right; infinite for NaN."""
    scale = expected.square().mean().sqrt().clamp(min=1e-6)
    error = float((actual.to(expected.dtype).reshape(expected.shape) - expected).abs().max() / scale)
    return error if error == error else float("inf")


def results(case: Case, timing: InterleavedTiming) -> dict[str, Any]:
    """What the reports show of a case that was timed."""
    rate = GEMM_FLOPS / quantiles(timing.times[GEMM])["median"]
    peers = [name for name in timing.implementations if name not in (OURS, GEMM)]
    return {
        "case": asdict(case) | {"title": case.title, "form": case.form},
        "flops": case.flops,
        "calls_per_round": timing.calls,
        "seconds": {name: quantiles(times) for name, times in timing.times.items()},
        "speedup": {name: quantiles(timing.ratio(name)) for name in peers},
        "gemm_gflops": rate / 1e9,
        "gflops": case.flops / quantiles(timing.times[OURS])["median"] / 1e9,
        "share_of_gemm": quantiles([r * case.flops / GEMM_FLOPS for r in timing.ratio(GEMM)])["median"],
    }


def onnx_call(problem: Problem) -> Call | None:
    """The problem's layer as an ONNX graph in ONNX Runtime, with torch's number of threads; None if not
    installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that spin on after a call would take a core from whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    case, states = problem.case, dict(zip(("h0", "c0"), problem.states, strict=False))
    model = onnx_model(problem.theirs, case, list(states))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": problem.x} | states
    feed = {name: value.reshape(-1, case.batch, value.size(-1)).numpy() for name, value in inputs.items()}
    return lambda: [
        torch.from_numpy(session.run(None, feed)[0])
    ]  # fetches the final states too, as the others do


def onnx_model(module: nn.Module, case: Case, states: list[str]) -> bytes:
    """The layers as LSTM, GRU or RNN nodes, serialized; `states` names the initial states that are inputs.
    Gates change from torch's order (LSTM ifgo, GRU rzn) to ONNX's (iofc, zrh); linear_before_reset=1 is
    torch's GRU, whose reset gate multiplies the product of the new gate, and 0 the one that resets before."""
    from onnx import TensorProto, checker, helper, numpy_helper

    order = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn": [0]}[case.cell]
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def gates(name: str) -> Tensor:
        return torch.cat([parameters[name].chunk(GATES[case.cell])[gate] for gate in order])

    nodes, constants, x, finals = [], [], "x", []
    for layer in range(case.layers):
        suffixes = [""] if case.variant == "Cell" else [f"_l{layer}", f"_l{layer}_reverse"][: case.directions]
        weights = {
            f"w{layer}": torch.stack([gates(f"weight_ih{s}") for s in suffixes]),
            f"r{layer}": torch.stack([gates(f"weight_hh{s}") for s in suffixes]),
            f"b{layer}": torch.stack(
                [torch.cat([gates(f"bias_ih{s}"), gates(f"bias_hh{s}")]) for s in suffixes]
            ),
        }
        constants += [numpy_helper.from_array(w.numpy(), name) for name, w in weights.items()]
        finals += [f"h{layer}_n"] + ([f"c{layer}_n"] if case.cell == "lstm" else [])
        attributes: dict[str, Any] = (
            {"linear_before_reset": int(case.reset_after)} if case.cell == "gru" else {}
        )
        nodes.append(
            helper.make_node(
                case.cell.upper(),
                [x, *weights, "", *states],
                [f"y{layer}", *finals[-2 if case.cell == "lstm" else -1 :]],
                hidden_size=case.hidden,
                direction="bidirectional" if case.directions == 2 else "forward",
                **attributes,
            )
        )
        # [T, D, B, H] -> [T, B, D * H]
        x = "output" if layer == case.layers - 1 else f"x{layer + 1}"
        nodes.append(helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t{layer}", "shape"], [x]))
    constants.append(numpy_helper.from_array(torch.tensor([0, 0, -1]).numpy(), "shape"))

    def info(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state_shape = (case.directions, case.batch, case.hidden)
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [
            info("x", case.seq_len, case.batch, case.input_size),
            *(info(name, *state_shape) for name in states),
        ],
        [
            info("output", case.seq_len, case.batch, case.directions * case.hidden),
            *(info(name, *state_shape) for name in finals),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())
