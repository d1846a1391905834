"""exp, sigmoid and tanh of every instruction set: at most 2 representable numbers from the right one."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from tests import kernels

pytestmark = pytest.mark.skipif(bool(kernels.MISSING), reason=kernels.MISSING)

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
FUNCTIONS = ("exp", "sigmoid", "tanh")
DTYPES = tuple(INTEGERS)


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _cpu_only(target: torch.device) -> None:
    if target.type != "cpu":
        pytest.skip("CUDA kernels have no op for their functions")


def native(x: Tensor, function: str) -> Tensor:
    return kernels.math(x, function)


def right(x: Tensor, function: str) -> Tensor:
    """Correctly rounded, but for a few values that lie within 2^-11 units of the middle of two numbers."""
    wide = x.numpy().astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        if function == "exp":
            result = np.exp(wide)
        elif function == "tanh":
            result = np.tanh(wide)
        else:
            e = np.exp(-np.abs(wide))
            result = np.where(wide >= 0, 1 / (1 + e), e / (1 + e))
        return torch.from_numpy(result.astype(x.numpy().dtype))


def place(x: Tensor) -> Tensor:
    """Each number's place in the order of all representable ones; both zeros have place 0."""
    bits = x.view(INTEGERS[x.dtype]).long()
    magnitude = bits & torch.iinfo(INTEGERS[x.dtype]).max
    return torch.where(bits < 0, -magnitude, magnitude)


def assert_within(x: Tensor, function: str, steps: int = 2) -> None:
    actual, expected = native(x, function), right(x, function)
    apart = (place(actual) - place(expected)).abs()
    worst = int(apart.argmax())
    assert apart[worst] <= steps, (
        f"{function}({x[worst].item()!r}) = {actual[worst].item()!r}, "
        f"{apart[worst]} steps from {expected[worst].item()!r}"
    )


def all_magnitudes(dtype: torch.dtype, per_exponent: int) -> Tensor:
    """Random mantissas for every exponent, denormals included, with both signs."""
    info = torch.finfo(dtype)
    lowest, highest = int(np.log2(info.smallest_normal)) + int(np.log2(info.eps)), int(np.log2(info.max))
    exponents = torch.arange(lowest, highest + 1, dtype=torch.float64)
    mantissas = 1 + torch.rand(per_exponent, len(exponents), dtype=torch.float64)
    x = torch.ldexp(mantissas, exponents).clamp(max=info.max).to(dtype).flatten()
    return torch.cat((x, -x))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_exponent(function: str, dtype: torch.dtype) -> None:
    assert_within(all_magnitudes(dtype, 50), function)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_where_results_vary(function: str, dtype: torch.dtype) -> None:
    limit = 1.03 * abs(np.log(torch.finfo(dtype).tiny))
    assert_within(torch.linspace(-limit, limit, 200_001, dtype=dtype), function)
    assert_within(torch.linspace(-1, 1, 200_001, dtype=dtype), function)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_around_the_edges(function: str, dtype: torch.dtype) -> None:
    """Neighbours of where results overflow, vanish or saturate, and of where formulas change."""
    info = torch.finfo(dtype)
    log = [np.log(v) for v in (info.max, info.tiny, info.tiny * info.eps, info.eps, info.eps / 4)]
    middles = torch.tensor([0, 0.5, 1, *np.abs(log), *np.abs(log) / 2, 0.5 * np.log(2), 0.625, 9, 19, 22])
    steps = torch.arange(-200, 201)
    around = (
        (middles.to(dtype)[:, None].view(INTEGERS[dtype]) + steps.to(INTEGERS[dtype])).view(dtype).flatten()
    )
    around = around[around.isfinite()]
    assert_within(torch.cat((around, -around)), function)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_against_exact_arithmetic(function: str, dtype: torch.dtype) -> None:
    """The yardstick of the other tests, and the kernels, against mpmath."""
    x = torch.cat((torch.randn(100, dtype=dtype) * 3, torch.randn(100, dtype=dtype) * 1e-4))
    with mpmath.workprec(200):
        one = mpmath.mpf(1)
        exact = {
            "exp": mpmath.exp,
            "tanh": mpmath.tanh,
            "sigmoid": lambda v: one / (one + mpmath.exp(-v)),
        }[function]
        values = [exact(mpmath.mpf(v)) for v in x.tolist()]
        halves = [(float(v), float(v - mpmath.mpf(float(v)))) for v in values]
    expected = torch.from_numpy(
        np.array([np.longdouble(a) + np.longdouble(b) for a, b in halves]).astype(x.numpy().dtype)
    )
    assert (place(right(x, function)) - place(expected)).abs().max() <= 1
    assert (place(native(x, function)) - place(expected)).abs().max() <= 2


SPECIAL = {
    # x, exp, sigmoid, tanh
    "infinity": (np.inf, np.inf, 1.0, 1.0),
    "-infinity": (-np.inf, 0.0, 0.0, -1.0),
    "0": (0.0, 1.0, 0.5, 0.0),
    "-0": (-0.0, 1.0, 0.5, -0.0),
    "huge": (1e30, np.inf, 1.0, 1.0),
    "-huge": (-1e30, 0.0, 0.0, -1.0),
    "NaN": (np.nan, np.nan, np.nan, np.nan),
}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(function: str, special: str, dtype: torch.dtype) -> None:
    x, *results = SPECIAL[special]
    expected = results[FUNCTIONS.index(function)]
    actual = native(torch.full((37,), x, dtype=dtype), function)
    torch.testing.assert_close(actual, torch.full_like(actual, expected), rtol=0, atol=0, equal_nan=True)
    if expected == 0 and function == "tanh":
        assert bool(torch.signbit(actual).all()) == (special == "-0")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_same_at_every_position_and_layout(function: str, dtype: torch.dtype) -> None:
    """Whole vectors and remainders compute the same; strides and neighbours do not matter."""
    x = torch.randn(131, dtype=dtype)
    expected = native(x, function)
    for n in (0, 1, 2, 7, 15, 16, 17, 63, 130):
        assert torch.equal(native(x[:n], function), expected[:n])
        assert torch.equal(native(x[n:], function), expected[n:])
    assert torch.equal(native(x.flip(0), function), expected.flip(0))
    assert torch.equal(native(torch.stack((x, x / 0), -1)[:, 0], function), expected)
    x[5] = torch.nan
    assert native(x, function).isnan().nonzero().tolist() == [[5]]


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_stays_in_range(function: str, dtype: torch.dtype) -> None:
    y = native(all_magnitudes(dtype, 20), function)
    assert y.abs().max() <= 1
    if function == "sigmoid":
        assert y.min() >= 0


def test_odd_functions_are_odd(dtype: torch.dtype) -> None:
    x = all_magnitudes(dtype, 20)
    assert torch.equal(native(x, "tanh"), -native(-x, "tanh"))


def test_mistakes() -> None:
    with pytest.raises(RuntimeError, match="function must be 'exp', 'sigmoid' or 'tanh', got 'log'"):
        native(torch.zeros(1), "log")
    with pytest.raises(RuntimeError, match="x must be float32 or float64"):
        native(torch.zeros(1, dtype=torch.int32), "exp")
