"""Prox steps on weights in place: the kernels against plain torch operations, in every layout and metric."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sparselayers as sl
from sparselayers.ops.diagonal import Diagonal
from sparselayers.ops.kernels.weights import compete_, keep_, shrink_
from sparselayers.sparsify.groups import cut_model
from sparselayers.sparsify.metric import Rate
from sparselayers.sparsify.multitensor import SMALL, prox_

pytest.importorskip("numba")
from sparselayers.ops.kernels.numba_tools import PARALLEL

FAMILY = [
    sl.L1(),
    sl.GroupL2(),
    sl.GroupL2(sqrt_size=True),
    sl.SparseGroup(),
    sl.SparseGroup(ratio=0.1),
    sl.Exclusive(),
    sl.L0(),
    sl.GroupL0(),
    sl.MCP(),
    sl.MCP(gamma=0.1),
    sl.GroupMCP(),
    sl.GroupMCP(gamma=0.1),
    sl.ElasticNet(),
]
SERVED_IN_METRIC = [p for p in FAMILY if not isinstance(p, sl.Exclusive | sl.GroupMCP | sl.ElasticNet)]


def randn(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(dtype)


def metric_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Five decades, as in Adam."""
    return 10.0 ** (randn(*shape, seed=1).sigmoid() * 5 - 4).to(dtype)


def close(found: Tensor, exact: Tensor, scale: float = 1.0) -> None:
    rounding = 1e-13 if found.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.double() / scale, exact.double() / scale, rtol=20 * rounding, atol=10 * rounding)


def plain(penalty: sl.Penalty, v: Tensor, t: float | Tensor, metric: Tensor | None = None) -> Tensor:
    """In float64, by torch operations."""
    t = t.double() if isinstance(t, Tensor) else t
    with sl.kernels(False):
        return penalty.prox(v.double(), t, None if metric is None else metric.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e18])
@pytest.mark.parametrize("n", [1, 5, 64, 2100])
@pytest.mark.parametrize("penalty", FAMILY, ids=repr)
@torch.no_grad()
def test_a_kernel_gives_what_torch_gives(penalty: sl.Penalty, n: int, scale: float, dtype: torch.dtype) -> None:
    v, t = randn(40, n, dtype=dtype, scale=scale), 0.3 * (1.0 if penalty == sl.Exclusive() else scale)
    v[3] = 0
    each = torch.linspace(0, 2 * t, 40, dtype=torch.float64).unsqueeze(-1)
    for strength in (t, 0.0, torch.tensor(t, dtype=torch.float64), each):
        found = v.clone()
        assert penalty._prox_(found, strength, None)
        close(found, plain(penalty, v, strength), scale)
        assert torch.equal(found[3], v[3])
    for metric in (metric_of(40, n, dtype=dtype), None):
        found = v.clone()
        if metric is not None and penalty in SERVED_IN_METRIC:
            assert penalty._prox_(found, t, metric)
            close(found, plain(penalty, v, t, metric), scale)
        assert penalty._prox_(found.copy_(v), 0.0, metric) == (metric is None or penalty in SERVED_IN_METRIC)
        assert torch.equal(found, v), "t = 0 is bitwise the identity"


@pytest.mark.parametrize("penalty", FAMILY, ids=repr)
@torch.no_grad()
def test_ends_of_the_range(penalty: sl.Penalty) -> None:
    v = randn(6, 70)
    v[1], v[2, 5] = 0, math.nan
    for metric in (None, metric_of(6, 70)):
        if metric is not None and penalty not in SERVED_IN_METRIC:
            continue
        found = v.clone()
        assert penalty._prox_(found, 0.2, metric)
        spoilt = found[2].isnan()
        assert spoilt[5]
        assert spoilt.sum() == (1 if penalty.separable else 70), "an entry of its own where the penalty is separable"
        assert not found[[0, 1, 3, 4, 5]].isnan().any()
        assert (found[1] == 0).all()
    found = v.clone()
    if not isinstance(penalty, sl.Exclusive):
        assert penalty._prox_(found, math.inf, None)
        assert (found[[0, 1, 3, 4, 5]] == 0).all()


@torch.no_grad()
def test_a_metric_as_an_optimizer_keeps_it() -> None:
    second = metric_of(30, 40)
    held = Diagonal(second, 2.0, 0.01, 0.05)
    whole = (second.sqrt() * 2 + 0.01).clamp_min(0.05)
    torch.testing.assert_close(held.whole(), whole)
    torch.testing.assert_close(held._replace(least=torch.tensor(0.05, dtype=torch.float64)).whole(), whole)
    for penalty in SERVED_IN_METRIC:
        v = randn(30, 40)
        found = v.clone()
        assert penalty._prox_(found, 0.02, held)
        close(found, plain(penalty, v, 0.02, whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_a_metric_of_any_spread(dtype: torch.dtype) -> None:
    """Newton's root where most of d is nothing, where one entry has it all, and where the row hardly stays."""
    for decades, share in [(0, 0.5), (3, 0.999), (12, 0.5), (30, 1e-3), (36, 0.9)]:
        v = randn(20, 50, dtype=dtype)
        metric = 10.0 ** (-decades * torch.rand(20, 50, generator=torch.Generator().manual_seed(2)).to(dtype))
        t = share * torch.linalg.vector_norm((metric * v).double(), dim=1, keepdim=True)
        for penalty in (sl.GroupL2(), sl.SparseGroup(ratio=0.01)):
            found = v.clone()
            assert penalty._prox_(found, t, metric)
            close(found, plain(penalty, v, t, metric))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_a_metric_whose_first_entries_mislead(dtype: torch.dtype) -> None:
    """The root of a long row is guessed from its beginning: which may be nothing, far stronger, weaker or larger; inf stays."""
    v, metric = randn(6, 1500, dtype=dtype), metric_of(6, 1500, dtype=dtype)
    v[0, :512] = 0
    metric[1, :512] *= 1e-6
    metric[2, :512] *= 1e6
    v[3, :512] *= 1e-8
    v[4, :512] *= 1e8
    metric[5, 7] = math.inf
    for share in (1e-3, 0.3, 0.999):
        t = share * torch.linalg.vector_norm((metric * v).double(), dim=1, keepdim=True).clamp_max(1e6)
        found = v.clone()
        assert sl.GroupL2()._prox_(found, t, metric)
        unit = v.abs().amax(1, keepdim=True)
        close(found / unit, plain(sl.GroupL2(), v, t, metric) / unit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_rows_that_compete_to_any_end(dtype: torch.dtype) -> None:
    """Strengths that move nothing and that leave one entry; ties, a row that takes Newton many passes, one entry alone."""
    hard = 1 - 2.0 ** -torch.arange(1, 2001, dtype=torch.float64).clamp(max=25)
    rows = torch.stack(
        [randn(2000), randn(2000, seed=1).sigmoid(), torch.ones(2000), hard, randn(2000).exp(), randn(2000) ** 5]
    )
    for t in (1e-300, 1e-9, 1e-4, 1.0, 1e4, 1e9):
        for v in (rows.to(dtype), rows[:, :1].to(dtype).contiguous()):
            found = v.clone()
            assert compete_(found, t)
            exact = plain(sl.Exclusive(), v, t)
            # What is left of a row may be far smaller than its entries: its digits are there up to t = 1.
            largest = exact.abs().amax(1, keepdim=True) if t <= 1 else 1.0
            close((found.double() / largest).to(dtype), exact / largest)
            assert (found != 0).any(1).all(), "no row vanishes"


@pytest.mark.parametrize("penalty", FAMILY, ids=repr)
@torch.no_grad()
def test_the_number_of_threads_changes_nothing(penalty: sl.Penalty) -> None:
    v, metric = randn(301, 120, dtype=torch.float32), metric_of(301, 120, dtype=torch.float32)
    assert v.numel() >= PARALLEL
    threads = torch.get_num_threads()
    for d in (None, metric) if penalty in SERVED_IN_METRIC else (None,):
        found = []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(v.clone())
                assert penalty._prox_(found[-1], 0.2, d)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*found)


@torch.no_grad()
def test_what_no_kernel_takes() -> None:
    v = randn(8, 6)
    assert not shrink_(v.T, 0.1, 0.1, None), "rows that are not rows in memory"
    assert not shrink_(v.bfloat16(), 0.1, 0.1, None)
    assert not shrink_(v, 0.1, 0.1, torch.ones(8, 6)), "a metric of another dtype"
    assert not shrink_(v, 0.1, 0.1, torch.ones(6, dtype=torch.float64))
    assert not compete_(v[:, :3], 0.1)
    assert not keep_(v.T, 0.1, None, None, True)
    assert not keep_(v, 0.1, 3.0, torch.ones(8, 6), False)
    with torch.enable_grad():
        assert not shrink_(v, 0.1, 0.1, None), "a graph wants the plain path"
    with sl.kernels(False):
        assert not shrink_(v, 0.1, 0.1, None)


@torch.no_grad()
def test_a_change_in_place_is_told_to_autograd() -> None:
    for change in (
        lambda v: shrink_(v, 0.1, 0.0, None),
        lambda v: compete_(v, 0.1),
        lambda v: keep_(v, 0.1, None, None, False),
    ):
        v = randn(8, 6)
        before = v._version
        assert change(v)
        assert v._version > before


LAYERS = {
    "small": lambda: nn.Linear(7, 6),
    "large": lambda: nn.Linear(500, 300),
    "convolution": lambda: nn.Conv2d(60, 70, 5),
    "channels_last": lambda: nn.Conv2d(60, 70, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", ["output", "input", "element", "neuron"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("penalty", [sl.L1(), sl.SparseGroup(), sl.Exclusive(), sl.LInf(), sl.GroupL0()], ids=repr)
@torch.no_grad()
def test_every_layout_and_metric(penalty: sl.Penalty, layer: str, groups: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = LAYERS[layer]().to(dtype)
    assert layer == "small" or model.weight.numel() > SMALL
    (block,) = cut_model(model, groups, None)
    parameters = dict(model.named_parameters())
    views = tuple(part.cut(parameters[part.name]) for part in block)
    states = [torch.rand_like(parameters[part.name]) * 1e-2 for part in block]
    diagonals = [Diagonal(s, 1.0, 0.01, 0.02) for s in states]
    held = [d.over(part.cut(d.second)) for part, d in zip(block, diagonals, strict=True)]
    for metric in (None, diagonals):
        rates = {part.name: Rate(0.004, d) for part, d in zip(block, metric or [None] * len(block), strict=True)}
        old = {name: p.clone() for name, p in parameters.items()}
        skip, go = torch.tensor(True), torch.tensor(False)
        prox_(penalty, [block], parameters, rates, 1.0, skip)
        assert all(torch.equal(p, old[name]) for name, p in parameters.items())
        rows = torch.cat([part.rows(part.cut(old[part.name])) for part in block], 1)
        d = None if metric is None else torch.cat([p.rows(h.whole()) for p, h in zip(block, held, strict=True)], 1)
        exact = plain(penalty, rows, 0.004, d)
        prox_(penalty, [block], parameters, rates, 1.0, go)
        found = torch.cat([part.rows(view) for part, view in zip(block, views, strict=True)], 1)
        if dtype == torch.bfloat16:
            torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-4)
        else:
            close(found, exact)
        for name, p in parameters.items():
            p.copy_(old[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_subnormal_rows_become_zero(dtype: torch.dtype) -> None:
    """What momentum leaves of a weight at zero: 1 / 2e-41 is infinite, and 0 times it is no number."""
    least = torch.finfo(dtype).tiny
    rows = torch.tensor([[least / 512, 0.0, -least / 1024], [0.0, 0.0, 0.0], [3.0, 4.0, 0.0]], dtype=dtype)
    for penalty in (sl.GroupL2(), sl.SparseGroup()):
        layer = nn.Linear(3, 3, bias=False, dtype=dtype)
        layer.weight.data.copy_(rows)
        sl.Regularizer(layer, penalty, lam=1.0).step(lr=1.0)
        torch.testing.assert_close(layer.weight.detach(), penalty.prox(rows, 1.0))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("penalty", [sl.GroupL2(), sl.LInf()], ids=repr)
def test_one_contiguous_view_alone_with_an_axis_of_one(penalty: sl.Penalty, kernels: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 4, 3)  # groups="input" is a transpose that moves nothing
    exact = penalty.prox(layer.weight.detach().view(1, -1), 0.1).view(layer.weight.shape)
    with sl.kernels(kernels):
        sl.Regularizer(layer, penalty, lam=1.0, groups="input").step(lr=0.1)
    torch.testing.assert_close(layer.weight.detach(), exact)
