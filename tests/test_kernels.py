"""The Numba kernels against plain torch operations, who switches them, and where they keep out of the way."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.ops import project, waterline
from sparselayers.ops.kernels import numba_tools, rows, switch
from sparselayers.ops.kernels.switch import serve

from .test_ops import hard_rows

OPERATORS = {
    "sparsemax": F.sparsemax,
    "entmax15": F.entmax15,
    "simplex of radius 3": lambda v: F.project_simplex(v, 3.0),
    "simplex of radius a row": lambda v: F.project_simplex(
        v, torch.linspace(0.1, 5, v.shape[0], dtype=v.dtype)[:, None]
    ),
    "l1 ball": lambda v: F.project_l1_ball(v, 2.0),
    "l1 ball of radius 0": lambda v: F.project_l1_ball(v, 0.0),
    "exclusive": lambda v: F.exclusive_threshold(v, 0.3),
    "exclusive, t a row": lambda v: F.exclusive_threshold(v, torch.linspace(0, 5, v.shape[0], dtype=v.dtype)[:, None]),
    "exclusive, small t": lambda v: F.exclusive_threshold(v, 1e-4),
    "LInf": lambda v: sl.LInf().prox(v, 2.0),
    "weighted simplex": lambda v: F.project_simplex(v, weight=torch.linspace(0.5, 2, v.shape[1], dtype=v.dtype)),
    "exclusive in a metric": lambda v: sl.Exclusive().prox(v, 0.3, torch.linspace(0.5, 2, v.shape[1], dtype=v.dtype)),
    "simplex in a metric": lambda v: sl.Simplex().prox(v, 1.0, torch.linspace(0.5, 2, v.shape[1], dtype=v.dtype)),
}


def both(fn, v: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Value and gradient, with kernels and without."""

    def run() -> tuple[Tensor, Tensor]:
        leaf = v.clone().requires_grad_()
        out = fn(leaf)
        pull = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape).flip(-1)
        return out.detach(), torch.autograd.grad(out, leaf, pull)[0]

    with_kernels = run()
    with sl.kernels(False):
        return with_kernels, run()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 5, 64, 65, 700, 3000])
def test_kernels_agree_with_plain_operations(name: str, dtype: torch.dtype, n: int) -> None:
    v = torch.stack(list(hard_rows(n, dtype).values()))
    g = torch.Generator().manual_seed(n)
    v = torch.cat([v, torch.randn(20, n, generator=g, dtype=dtype)])
    (found, grad), (expected, expected_grad) = both(OPERATORS[name], v)
    spread = v.abs().amax(-1, keepdim=True).clamp_min(1)
    assert ((found - expected).abs() <= 40 * torch.finfo(dtype).eps * spread).all()
    # A gradient jumps where an entry enters the support: it is compared where both found the same one.
    same = ((found == 0) == (expected == 0)).all(-1)
    assert same[-20:].all()
    close = 1e3 * torch.finfo(dtype).eps * max(1, n) ** 0.5
    assert ((grad - expected_grad).abs()[same] <= close * (1 + expected_grad.abs()[same])).all()


@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "exclusive", "l1 ball"])
@pytest.mark.parametrize("n", [3, 100])
def test_kernels_on_rows_that_hold_nan_or_inf(name: str, n: int) -> None:
    v = torch.randn(9, n, generator=torch.Generator().manual_seed(0))
    v[0, 0], v[1, -1], v[2, 1] = torch.nan, -torch.tensor(torch.nan), torch.inf
    v[3, :2], v[4], v[5] = -torch.inf, -torch.inf, torch.nan
    v[6] = 0
    if name not in ("sparsemax", "entmax15"):
        v[3:5] = 1.0
    (found, _), (expected, _) = both(OPERATORS[name], v)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[[0, 1, 2, 5]].isnan().all()
    assert found[[3, 4, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_sums_of_long_rows(name: str, dtype: torch.dtype, scale: float) -> None:
    z = (scale * torch.randn(4, 32000, generator=torch.Generator().manual_seed(1))).to(dtype)
    p = OPERATORS[name](z)
    exact = OPERATORS[name](z.double())
    assert p.dtype == dtype
    assert ((p.double() - exact).abs() <= torch.finfo(dtype).eps * exact + 3e-7).all()
    if dtype == torch.float32:
        assert (p.double().sum(-1) - 1).abs().max() <= 2e-6


def test_any_layout_and_no_mutation() -> None:
    base = torch.randn(6, 40, 3, generator=torch.Generator().manual_seed(0))
    for v, dim in ((base, 1), (base.mT, -2), (base[:, ::2], 1), (base[::2, 3:9, 1], -1), (base[0, 0, 0].expand(7), 0)):
        before = v.clone()
        with sl.kernels(False):
            expected = F.sparsemax(v, dim)
        torch.testing.assert_close(F.sparsemax(v, dim), expected)
        assert torch.equal(v, before)


def test_many_rows_go_to_threads() -> None:
    v = torch.randn(3001, 97, generator=torch.Generator().manual_seed(0))
    assert v.numel() >= numba_tools.PARALLEL
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = [fn(v) for fn in OPERATORS.values()]
        torch.set_num_threads(1)
        one = [fn(v) for fn in OPERATORS.values()]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_callers_in_several_threads() -> None:
    v = torch.randn(2000, 97, generator=torch.Generator().manual_seed(0))
    expected, wrong = F.sparsemax(v), []

    def work() -> None:
        for _ in range(20):
            if not torch.equal(F.sparsemax(v), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_works_alone(monkeypatch) -> None:
    monkeypatch.setattr(numba_tools, "_forked", False)
    numba_tools._after_fork()
    v = torch.randn(3001, 97, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = F.sparsemax(v)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found.sum(-1), torch.ones(3001))


def test_the_switch() -> None:
    v = torch.randn(4, 5)
    assert serve(v) == "numba"
    with sl.kernels(False):
        assert serve(v) is None
        with sl.kernels(True):
            assert serve(v) == "numba"
        assert serve(v) is None
    assert serve(v) == "numba"
    with pytest.raises(TypeError, match="enabled must be True or False, got 1"), sl.kernels(1):
        pass


def test_the_switch_of_a_process() -> None:
    code = "import torch; from sparselayers.ops.kernels.switch import serve; print(serve(torch.ones(2)))"
    for value, expected in (("0", "None"), ("1", "numba")):
        env = {**os.environ, "SPARSELAYERS_KERNELS": value}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, sparselayers; print([m for m in ('numba', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_numba_plain_operations_serve(monkeypatch) -> None:
    monkeypatch.setattr("sparselayers.ops.kernels.switch._installed", lambda package: False)
    assert serve(torch.ones(2)) is None
    torch.testing.assert_close(F.sparsemax(torch.tensor([0.5, 1.2, 0.1])), torch.tensor([0.15, 0.85, 0.0]))


def test_where_kernels_keep_out_of_the_way() -> None:
    v = torch.randn(3, 4)
    assert serve(v.half()) is None
    assert serve(v[:0]) is None
    assert serve(v.to("meta")) is None
    seen = []
    torch.func.vmap(lambda row: seen.append(serve(row)) or row)(v)
    with torch.autograd.forward_ad.dual_level():
        seen.append(serve(v))
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        seen.append(serve(v))
    assert seen == [None, None, None]


def test_strengths_that_need_a_gradient_get_it() -> None:
    v = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    t = torch.rand(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.2
    t.requires_grad_()
    for fn in (F.exclusive_threshold, F.project_simplex, F.project_l1_ball):
        torch.autograd.gradcheck(fn, (v, t))


def test_the_level_has_its_gradient_too() -> None:
    u = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for a, b, c in ((1.0, 1.0, 0.0), (0.5, 0.0, 1.0), (2.0, 0.3, 0.7)):
        torch.autograd.gradcheck(lambda u, a=a, b=b, c=c: tuple(waterline.waterline(u, a, b, c)), (u,))
        torch.autograd.gradgradcheck(lambda u, a=a, b=b, c=c: tuple(waterline.waterline(u, a, b, c)), (u,), atol=1e-4)


def test_vjps_of_weights_agree_without_kernels() -> None:
    z, g = (torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    for mapping, vjp in ((F.sparsemax, rows.sparsemax_vjp), (F.entmax15, rows.entmax15_vjp)):
        leaf = z.clone().requires_grad_()
        (expected,) = torch.autograd.grad(mapping(leaf), leaf, g)
        for enabled in (True, False):
            with sl.kernels(enabled):
                torch.testing.assert_close(vjp(mapping(z), g), expected)


def test_shapes_that_kernels_decline_are_still_right() -> None:
    """More strengths than rows: the plain path broadcasts them."""
    v, t = torch.randn(4, generator=torch.Generator().manual_seed(0)).abs(), torch.rand(3, 1)
    assert rows.project_rows(v, t, 0.0, 1.0, signed=True) is None
    assert project.compete(v, t).shape == (3, 4)


def test_no_writable_place_for_compiled_kernels(tmp_path) -> None:
    """Numba keeps compiled kernels on disk; where it cannot, they are compiled anew in each process."""
    code = (
        "import numba, torch\n"
        "real = numba.njit\n"
        "def njit(*args, cache=False, **options):\n"
        "    if cache:\n"
        "        raise RuntimeError('cannot cache function: no locator available')\n"
        "    return real(*args, **options)\n"
        "numba.njit = njit\n"
        "from sparselayers.ops.kernels import numba_level\n"
        "u = torch.tensor([[1.0, 0.5]])\n"
        "print(numba_level.level(u, 1.0, 1.0, 0.0, torch.zeros(1, 1)).item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == 0.25


@pytest.mark.parametrize("f", [F.exclusive_threshold, F.project_l1_ball, F.project_simplex])
def test_a_strength_changed_in_place_does_not_reach_the_gradient(f: Callable) -> None:
    """A copy of it serves the backward, or none is needed."""
    v, t = torch.randn(4, 6).requires_grad_(), torch.full((4, 1), 0.3)
    (before,) = torch.autograd.grad(f(v, t).square().sum(), v)
    out = f(v, t)
    t.fill_(50.0)
    (after,) = torch.autograd.grad(out.square().sum(), v)
    assert torch.equal(before, after)


@pytest.mark.parametrize("n", [16384, 65536])
def test_sums_of_long_rows_that_are_nearly_constant(n: int) -> None:
    z = 1e-7 * torch.randn(4, n, generator=torch.Generator().manual_seed(0))
    assert (F.sparsemax(z).double().sum(-1) - 1).abs().max() <= 2e-6


def test_memory_that_holds_the_negative() -> None:
    z = torch.randn(3, 5)
    torch.testing.assert_close(F.sparsemax(torch._neg_view(z)), F.sparsemax(-z))


def test_numba_that_is_there_but_broken(monkeypatch) -> None:
    def broken(package: str) -> None:
        raise ImportError("Numba needs NumPy 2.2 or less")

    monkeypatch.setattr("importlib.import_module", broken)
    monkeypatch.setattr(switch, "_installed", functools.cache(switch._installed.__wrapped__))
    with pytest.warns(RuntimeWarning, match="numba cannot be imported, plain torch operations serve: Numba needs"):
        found = F.sparsemax(torch.tensor([0.5, 1.2, 0.1]))
    torch.testing.assert_close(found, torch.tensor([0.15, 0.85, 0.0]))
