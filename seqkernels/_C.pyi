from collections.abc import Callable
from typing import Any

from torch import Tensor

unit_padding: int

def build_config() -> dict[str, Any]: ...
def cells() -> list[dict[str, Any]]: ...
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def add_cpu_isa(kernels: object) -> str: ...
def set_cpu_isa(isa: str) -> None: ...
def fill_scratch(fill: bool) -> None: ...
def fastpath(
    module: dict[str, Any],
    cell: str,
    is_cell: bool,
    x: Any,
    hx: Any,
    gradients: bool,
    reset_mask: Any = None,
) -> Any: ...

class Frozen:
    def __init__(
        self,
        cell: str,
        is_cell: bool,
        input_size: int,
        hidden_size: int,
        proj_size: int,
        num_layers: int,
        bidirectional: bool,
        batch_first: bool,
        bfloat16: bool,
        norm_eps: float,
        parameters: list[Tensor | None],
    ) -> None: ...
    cell: str
    is_cell: bool
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    batch_first: bool
    bfloat16: bool
    norm_eps: float
    def unpack(self, parameters: list[Tensor]) -> None: ...
    def run(self, x: Any, hx: Any, gradients: bool) -> Any: ...

def process_was_forked() -> bool: ...

# Only in a build with CUDA kernels
def set_tf32_query(query: Callable[[], bool] | None) -> None: ...
def cuda_plans(
    cell: str,
    dtype: str,
    backward: bool,
    batch: int,
    hidden: int,
    directions: int,
    tf32_allowed: bool,
    device: int | tuple[int, int, int],
    outputs: int = 0,
    seq_len: int = 256,
    has_transition: bool = False,
) -> list[dict[str, Any]]: ...
