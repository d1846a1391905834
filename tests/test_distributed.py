"""Fused layers in two processes, sharded or replicated, train to what one process with all of a batch has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import seqkernels
from tests.conftest import assert_close

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]

PROCESSES, STEPS, B, H = 2, 3, 4, 16


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = seqkernels.FusedLSTM(8, H, num_layers=2, backend="native")
        self.head = nn.Linear(H, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][0][-1])


def replicated(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def sharded(model: Tagger) -> nn.Module:
    return sharded_as_one(model, model.rnn)


def sharded_as_one(model: Tagger, *groups: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    for module in (*groups, model):
        fully_shard(module, mesh=mesh)
    return model


WAYS: dict[str, Callable[[Tagger], nn.Module]] = {
    f.__name__: f for f in (replicated, sharded, sharded_as_one)
}


def train(wrap: Callable[[Tagger], nn.Module], first: int, count: int) -> list[Tensor]:
    """The parameters after some steps on sequences `first` to `first + count` of each batch."""
    torch.manual_seed(0)
    model = wrap(Tagger())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        x = torch.randn(5, B, 8)[:, first : first + count]
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        share = B // PROCESSES
        results = {name: train(wrap, rank * share, share) for name, wrap in WAYS.items()}
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """What each process has in the end, by the way in which it trained."""
    folder: Path = tmp_path_factory.mktemp("processes")
    mp.spawn(work, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one(way: str, results: list[dict[str, list[Tensor]]]) -> None:
    expected = train(lambda model: model, 0, B)
    before = list(Tagger().parameters())
    for own in results:
        assert_close(own[way], expected)
        assert all(not torch.equal(after, start) for after, start in zip(own[way], before, strict=True))
