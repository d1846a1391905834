"""How the flags of zoneout are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import seqkernels
from seqkernels._ops import random_flags

WORD = 2**32


def threefry(seed: int, counters: np.ndarray) -> np.ndarray:
    """Four words [N, 4] that Threefry4x32-20 makes of each counter [N, 4] (Salmon et al. 2011)."""
    rotations = [(10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20)]
    key = [seed >> 32 * i & WORD - 1 for i in range(4)]
    key.append(0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3])
    x = [(counters[:, i].astype(np.uint64) + np.uint64(key[i])) % WORD for i in range(4)]

    def mix(i: int, j: int, by: int) -> None:
        x[i] = (x[i] + x[j]) % WORD
        x[j] = (x[j] << np.uint64(by) | x[j] >> np.uint64(32 - by)) % WORD ^ x[i]

    for round in range(20):
        first, second = (1, 3) if round % 2 == 0 else (3, 1)
        mix(0, first, rotations[round % 8][0])
        mix(2, second, rotations[round % 8][1])
        if round % 4 == 3:
            n = round // 4 + 1
            x = [(x[i] + np.uint64(key[(n + i) % 5] + (n if i == 3 else 0))) % WORD for i in range(4)]
    return np.stack(x, axis=1)


def drawn(count: int, seed: int, p: float) -> Tensor:
    flags = torch.empty(count, dtype=torch.bool)
    random_flags(flags, torch.tensor(seed), p)
    return flags


def test_the_reference_is_threefry() -> None:
    # The known answers of the authors' own library, Random123.
    ones, pi = WORD - 1, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    more_of_pi = 0xEC4E6C89_082EFA98_299F31D0_A4093822
    known = [
        ([0] * 4, 0, [0x9C6CA96A, 0xE17EAE66, 0xFC10ECD4, 0x5256A7D8]),
        ([ones] * 4, WORD**4 - 1, [0x2A881696, 0x57012287, 0xF6C7446E, 0xA16A6732]),
        (pi, more_of_pi, [0x59CD1DBB, 0xB8879579, 0x86B5D00C, 0xAC8B6D84]),
    ]
    for counter, seed, words in known:
        assert threefry(seed, np.array([counter]))[0].tolist() == words


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 5000])
@pytest.mark.parametrize("p", [0, 2**-16, 0.1, 0.5, 1 - 2**-16, 1])
def test_flags_are_bits_of_threefry(target: torch.device, count: int, p: float) -> None:
    if target.type != "cpu":
        pytest.skip("torch draws on other devices")
    for seed in (0, -1, 0x123456789ABCDEF):
        counters = np.zeros((-(-count // 128) * 16, 4), dtype=np.uint64)
        counters[:, 0] = np.arange(len(counters))
        words = threefry(seed % WORD**2, counters)
        words = words.reshape(-1, 16, 4).transpose(0, 2, 1)  # [block, word, counter]
        halves = np.stack([words % 2**16, words // 2**16], axis=-1).reshape(-1)[:count]
        assert drawn(count, seed, p).tolist() == (halves < round(p * 2**16)).tolist()


def test_threads_draw_the_same() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = drawn(1_000_003, 7, 0.3)
        torch.set_num_threads(3)
        assert torch.equal(one, drawn(1_000_003, 7, 0.3))
    finally:
        torch.set_num_threads(threads)
    assert one.double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 1e6) ** 0.5)


@pytest.mark.parametrize(
    ("flags", "seed", "p", "message"),
    [
        (torch.empty(3), torch.tensor(1), 0.5, "flags must have dtype Bool, got Float"),
        (torch.empty(4, dtype=torch.bool)[::2], torch.tensor(1), 0.5, "flags must be contiguous"),
        (torch.empty(3, dtype=torch.bool), torch.tensor(1.0), 0.5, "seed must have dtype Long, got Float"),
        (torch.empty(3, dtype=torch.bool), torch.tensor([1, 2]), 0.5, "seed must have one element, got 2"),
        (torch.empty(3, dtype=torch.bool), torch.tensor(1), 1.5, "p must be a probability, .*1.5"),
        (torch.empty(3, dtype=torch.bool), torch.tensor(1), float("nan"), "p must be a probability, .*nan"),
    ],
)
def test_wrong_arguments(flags: Tensor, seed: Tensor, p: float, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        random_flags(flags, seed, p)


def test_freed_storages() -> None:
    flags, seed = torch.empty(300, dtype=torch.bool), torch.tensor(1)
    flags.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="flags must have a storage of at least 300 bytes, got 0"):
        random_flags(flags, seed, 0.5)
    seed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="seed must have a storage of at least 8 bytes, got 0"):
        random_flags(torch.empty(3, dtype=torch.bool), seed, 0.5)


def test_fake_tensors() -> None:
    with FakeTensorMode():
        output, _ = seqkernels.FusedLSTM(8, 16, zoneout=0.1)(torch.randn(5, 3, 8))
    assert output.shape == (5, 3, 16)


@pytest.mark.parametrize("p", [2**-20, 1 - 2**-20])
def test_probabilities_beyond_sixteen_bits(p: float) -> None:
    torch.manual_seed(0)
    lstm = seqkernels.FusedLSTM(8, 64, zoneout=p)
    with torch.no_grad():
        _, (h_n, _) = lstm(torch.randn(40, 4, 8))  # 10,240 flags each of h and c; of 2^20 one differs
    assert h_n.any() == (p < 0.5)
