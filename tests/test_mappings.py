"""Sparsemax and entmax-1.5 against bisection, the published Jacobian and entmax itself; masks, dtypes, NaN, modules."""

from __future__ import annotations

import entmax
import numpy as np
import pytest
import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F

from . import oracles
from .test_ops import hard_rows

BOTH = pytest.mark.parametrize("f", [F.sparsemax, F.entmax15])


def scores(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)


def twin(f, row: np.ndarray) -> np.ndarray:
    return oracles.entmax15(row) if f is F.entmax15 else oracles.simplex(row, np.ones_like(row), 1.0)


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_equals_bisection(f, scale: float) -> None:
    z = scale * scores(30, 17)
    expected = np.stack([twin(f, row) for row in z.numpy()])
    torch.testing.assert_close(f(z), torch.from_numpy(expected), rtol=1e-10, atol=1e-11)


@BOTH
def test_equals_entmax(f) -> None:
    z = scores(50, 40)
    peer = entmax.sparsemax if f is F.sparsemax else entmax.entmax15
    torch.testing.assert_close(f(z), peer(z, -1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 64, 20000])
@pytest.mark.parametrize("eager", [True, False])
def test_entmax15_on_hard_rows(n: int, eager: bool, monkeypatch) -> None:
    if not eager:
        monkeypatch.setattr("sparselayers.ops.entmax15.may_branch", lambda x: False)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        for name, row in hard_rows(n, dtype).items():
            found = F.entmax15(row)
            spread = max(1.0, float(row.abs().max()))
            assert abs(found.double().numpy() - oracles.entmax15(row.numpy())).max() <= tolerance * spread, name
            assert abs(float(found.double().sum()) - 1) <= tolerance * max(4, n**0.5), name


def test_sparsemax_jacobian_is_the_published_one() -> None:
    z = scores(9)
    s = (F.sparsemax(z) > 0).double()
    expected = torch.diag(s) - torch.outer(s, s) / s.sum()
    torch.testing.assert_close(torch.func.jacrev(F.sparsemax)(z), expected)
    torch.testing.assert_close(torch.func.jacfwd(F.sparsemax)(z), expected)


@BOTH
def test_entmax15_second_derivatives_are_finite_off_the_support(f) -> None:
    z = scores(3, 8).requires_grad_()
    assert torch.autograd.gradgradcheck(f, z)
    assert torch.func.hessian(lambda z: (f(z) ** 2).sum())(z.detach()).isfinite().all()


@BOTH
def test_masked_is_dropped_whatever_stands_there(f) -> None:
    z = scores(4, 9)
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    dirty = torch.where(mask, z, torch.tensor([torch.nan, torch.inf, 1e30])[torch.arange(9) % 3].double())
    dirty.requires_grad_()
    p = f(dirty, mask=mask)
    for row, seen, out in zip(z, mask, p, strict=True):
        torch.testing.assert_close(out[seen], f(row[seen]))
        assert (out[~seen] == 0).all()
    (grad,) = torch.autograd.grad((p * z).sum(), dirty)
    assert grad.isfinite().all()
    assert (grad[~mask] == 0).all()
    torch.testing.assert_close(f(z, mask=mask[:1]), f(z, mask=mask[:1].expand(4, 9)))
    torch.testing.assert_close(f(z.masked_fill(~mask, -torch.inf)), p.detach())
    torch.testing.assert_close(f(z.T, dim=0, mask=mask.T), p.detach().T)


@BOTH
def test_rows_with_nothing_left_are_zero_with_zero_gradient(f) -> None:
    z = scores(3, 5)
    z[0] = -torch.inf
    mask = torch.tensor([[True], [False], [True]])
    z.requires_grad_()
    p = f(z, mask=mask)
    assert (p[:2] == 0).all()
    (grad,) = torch.autograd.grad((p * torch.arange(5)).sum(), z, create_graph=True)
    assert (grad[:2] == 0).all()
    assert grad.isfinite().all()
    assert torch.autograd.grad(grad.square().sum(), z)[0].isfinite().all()


@BOTH
def test_nan_and_plus_inf_fill_their_row_and_no_other(f) -> None:
    z = scores(4, 5)
    z[1, 2], z[2, 0] = torch.nan, torch.inf
    p = f(z)
    assert p[1].isnan().all()
    assert p[2].isnan().all()
    torch.testing.assert_close(p[[0, 3]], f(z[[0, 3]]))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [64, 16384])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_sixteen_bits(f, dtype: torch.dtype, n: int, scale: float) -> None:
    z = (scale * torch.randn(4, n, generator=torch.Generator().manual_seed(0))).to(dtype)
    p = f(z)
    exact = f(z.double())
    assert p.dtype == dtype
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((p.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact + smallest + 1e-6).all()


@BOTH
def test_shapes_and_strides(f) -> None:
    z = scores(2, 3, 4)
    assert f(torch.zeros(0, 5)).shape == (0, 5)
    assert f(torch.zeros(5, 0)).shape == (5, 0)
    assert f(torch.zeros(1)).tolist() == [1.0]
    for dim in (-3, -2, -1, 0, 1, 2):
        torch.testing.assert_close(f(z, dim=dim).sum(dim), torch.ones_like(z.sum(dim)))
    strided = z.transpose(0, 2)
    torch.testing.assert_close(f(strided, dim=0), f(strided.contiguous(), dim=0))
    before = z.clone()
    f(z)
    assert torch.equal(z, before)


@BOTH
def test_symmetries(f) -> None:
    z = scores(5, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(f(z[:, order]), f(z)[:, order])
    torch.testing.assert_close(f(z + 3.7), f(z))
    torch.testing.assert_close(f(torch.zeros(2, 5)), torch.full((2, 5), 0.2))


def test_modules_are_their_functions() -> None:
    z = scores(3, 5)
    mask = z > -1
    torch.testing.assert_close(sl.Sparsemax(dim=0)(z, mask), F.sparsemax(z, 0, mask))
    torch.testing.assert_close(sl.Entmax15(dim=0)(z, mask), F.entmax15(z, 0, mask))
    torch.testing.assert_close(sl.SoftThreshold(0.3)(z), F.soft_threshold(z, 0.3))
    torch.testing.assert_close(sl.SoftThreshold(0.3)(z, 0.7), F.soft_threshold(z, 0.7))
    torch.testing.assert_close(sl.SigShrink(0.3, 5.0)(z), F.sigshrink(z, 0.3, 5.0))
    torch.testing.assert_close(sl.SigShrink(0.3, 5.0)(z, 0.7), F.sigshrink(z, 0.7, 5.0))
    assert repr(sl.Sparsemax(dim=0)) == "Sparsemax(dim=0)"
    assert repr(sl.Entmax15()) == "Entmax15(dim=-1)"
    assert repr(sl.SigShrink(0.3, torch.ones(4))) == "SigShrink(lam=0.3, tau=tensor(4,))"
    assert repr(sl.SoftThreshold(0.3, learn=True)) == "SoftThreshold(lam=learned)"


def test_learned_strengths_are_unconstrained_and_positive() -> None:
    shrink = sl.SigShrink(0.5, 3.0, learn=("lam", "tau"))
    assert set(shrink.state_dict()) == {"log_lam", "log_tau"}
    torch.testing.assert_close(shrink.lam, torch.tensor(0.5))
    optimizer = torch.optim.SGD(shrink.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        (-shrink(torch.ones(3)).sum()).backward()
        optimizer.step()
    assert 0 < float(shrink.lam.detach()) < 0.5
    soft = sl.SoftThreshold(torch.tensor([0.5, 0.1]))
    assert set(soft.state_dict()) == {"fixed_lam"}
    torch.testing.assert_close(soft(torch.ones(2)), torch.tensor([0.5, 0.9]))


Z = torch.ones(2, 4)
WRONG = [
    (lambda: F.sparsemax(Z.long()), TypeError, r"z must be floating point, got torch.int64; use z.float\(\)"),
    (lambda: F.entmax15(Z.long()), TypeError, "z must be floating point"),
    (lambda: F.sparsemax(Z, dim=5), IndexError, r"dim must lie in \[-2, 1\]"),
    (lambda: F.entmax15(Z, dim=5), ValueError, r"dim must lie in \[-2, 1\]"),
    (lambda: F.sparsemax(torch.tensor(1.0)), IndexError, "unsqueeze a 0-d tensor"),
    (lambda: F.sparsemax(Z, mask=Z), TypeError, "mask must be a boolean tensor"),
    (lambda: F.entmax15(Z, mask=torch.ones(3, 4, dtype=torch.bool)), ValueError, "does not broadcast to z of shape"),
    (lambda: sl.SigShrink(-1.0, 1.0), ValueError, r"lam must lie in \[0, inf\]"),
    (lambda: sl.SigShrink(1.0, 0.0), ValueError, r"tau must lie in \(0, inf\]"),
    (lambda: sl.SigShrink(1.0, 1.0, learn="lam"), ValueError, "learn must be a sequence of names"),
    (lambda: sl.SoftThreshold(-1.0), ValueError, "lam must lie"),
    (lambda: sl.SoftThreshold(0.0, learn=True), ValueError, "a learned lam stays positive and cannot start at 0.0"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
