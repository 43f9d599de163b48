"""Affine least squares against a dense solve of its optimality conditions, with masks and in every shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparselayers.functional as F

affine = F.affine_least_squares


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_optimality(x: Tensor, atoms: Tensor, ridge: float, usable: Tensor) -> Tensor:
    """One point: [K K^T + ridge I, 1; 1^T, 0] [y; level] = [K x; 1] on the atoms that may be used."""
    y = torch.zeros(len(atoms), dtype=torch.float64)
    kept = atoms[usable]
    n = len(kept)
    if n:
        matrix = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        matrix[:n, :n] = kept @ kept.T + ridge * torch.eye(n)
        matrix[n, :n] = matrix[:n, n] = 1
        y[usable] = torch.linalg.solve(matrix, torch.cat([kept @ x, torch.ones(1).double()]))[:n]
    return y


SHAPES = {
    "one point": ((), (7, 3), None, ()),
    "few atoms": ((5,), (3, 6), None, ()),
    "as many": ((5,), (4, 4), None, ()),
    "many atoms": ((5,), (9, 3), None, ()),
    "one atom": ((5,), (1, 3), None, ()),
    "more axes": ((2, 5), (2, 1, 6, 3), None, ()),
    "shared by all": ((2, 5), (6, 3), None, ()),
    "own atoms": ((2, 5), (2, 5, 6, 3), None, ()),
    "atoms for one point": ((3,), (4, 1, 6, 3), None, ()),
    "a ridge a point": ((2, 5), (2, 1, 6, 3), None, (2, 5, 1)),
    "a ridge a head": ((2, 5), (2, 1, 6, 3), None, (2, 1, 1)),
    "a mask for all": ((2, 5), (2, 1, 6, 3), (6,), ()),
    "a mask a head": ((2, 5), (2, 1, 6, 3), (2, 1, 6), (1,)),
    "a mask a point": ((2, 5), (2, 1, 6, 3), (2, 5, 6), ()),
    "a mask of few atoms": ((2, 5), (2, 1, 3, 6), (2, 5, 3), (5, 1)),
}


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("name", SHAPES)
def test_by_its_optimality_conditions(name: str, shift: float) -> None:
    lead, shape, masked, strengths = SHAPES[name]
    x, atoms = random(*lead, shape[-1]) + shift, random(*shape, seed=1) + shift
    mask = None if masked is None else torch.rand(masked, generator=torch.Generator().manual_seed(2)) > 0.3
    if mask is not None and mask.ndim > 1:
        mask[1, 0] = False  # nothing may be used
    ridge = 0.1 + random(*strengths, seed=3).abs() if strengths else 0.2
    y = affine(x, atoms, ridge, mask=mask)
    batch, n = torch.broadcast_shapes(lead, shape[:-2]), shape[-2]
    assert y.shape == (*batch, n)
    points, sets = (
        x.expand(*batch, -1).reshape(-1, shape[-1]),
        atoms.expand(*batch, *shape[-2:]).reshape(-1, *shape[-2:]),
    )
    usable = torch.ones(n, dtype=torch.bool) if mask is None else mask
    usable, strength = usable.expand(*batch, n).reshape(-1, n), torch.as_tensor(ridge).expand(*batch, 1).reshape(-1)
    expected = [by_optimality(*row) for row in zip(points, sets, strength.tolist(), usable, strict=True)]
    torch.testing.assert_close(y.reshape(-1, n), torch.stack(expected), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(y.sum(-1).reshape(-1), usable.any(-1).double())


def test_what_a_shift_and_a_rotation_change() -> None:
    x, atoms, turn = random(5, 3), random(7, 3, seed=1), torch.linalg.qr(random(3, 3, seed=2))[0]
    y = affine(x, atoms, 0.2)
    torch.testing.assert_close(affine(x @ turn + 3, atoms @ turn + 3, 0.2), y)
    torch.testing.assert_close(affine(10 * x, 10 * atoms, 20.0), y)
    assert (y < 0).any()


def test_without_a_ridge_to_speak_of_it_reaches_the_affine_hull() -> None:
    atoms = random(3, 5)
    inside = torch.tensor([3.0, -4.0, 2.0], dtype=torch.float64) @ atoms
    torch.testing.assert_close(affine(inside, atoms, 1e-10) @ atoms, inside, rtol=0, atol=1e-6)
    singles = affine(inside.float(), atoms.float(), 1e-6)
    torch.testing.assert_close(singles.sum(), torch.tensor(1.0))


def test_masked_atoms_may_hold_anything() -> None:
    x, atoms = random(2, 4, 3), random(2, 1, 6, 3, seed=1)
    mask = torch.tensor([True, True, False, True, True, False])
    broken = atoms.clone()
    broken[..., 2, :], broken[..., 5, 1] = torch.nan, torch.inf
    leaf = broken.requires_grad_()
    y = affine(x, leaf, 0.3, mask=mask)
    torch.testing.assert_close(y[..., mask], affine(x, atoms[..., mask, :], 0.3))
    assert not y[..., ~mask].any()
    (grad,) = torch.autograd.grad(y.square().sum(), leaf)
    assert grad.isfinite().all()
    assert not grad[..., ~mask, :].any()


def test_no_atom_at_all_is_zero_with_gradient_zero() -> None:
    x, atoms = random(3, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    y = affine(x, atoms, 0.3, mask=torch.tensor([[True], [False], [True]]))
    assert not y[1].any()
    grads = torch.autograd.grad(y[1].sum(), (x, atoms))
    assert not any(g.any() for g in grads)
    assert affine(x, atoms[:0], 0.3).shape == (3, 0)
    assert affine(x[:0], atoms, 0.3).shape == (0, 5)


@pytest.mark.parametrize("n", [3, 9])
def test_nan_spoils_its_own_row_alone(n: int) -> None:
    x, atoms = random(4, 5), random(n, 5, seed=1)
    expected = affine(x, atoms, 0.3)
    x[2, 1] = torch.nan
    y = affine(x, atoms, 0.3)
    assert y[2].isnan().all()
    torch.testing.assert_close(y[[0, 1, 3]], expected[[0, 1, 3]])
    atoms[0] = torch.nan
    assert affine(x, atoms, 0.3).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [3, 9])
def test_sixteen_bits(dtype: torch.dtype, n: int) -> None:
    x, atoms = random(4, 5).to(dtype), random(n, 5, seed=1).to(dtype)
    y = affine(x, atoms, 0.3)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), affine(x.double(), atoms.double(), 0.3), rtol=1e-2, atol=1e-2)


def test_inputs_are_left_alone_and_may_be_strided() -> None:
    x, atoms = random(3, 4).T, random(3, 9, seed=1).T
    before = x.clone(), atoms.clone()
    y = affine(x, atoms, 0.3)
    assert torch.equal(x, before[0])
    assert torch.equal(atoms, before[1])
    torch.testing.assert_close(y, affine(x.contiguous(), atoms.contiguous(), 0.3))


X, ATOMS = torch.ones(5, 4), torch.ones(7, 4)
WRONG = [
    (lambda: affine(X.int(), ATOMS, 1.0), TypeError, r"x must be floating point, got torch.int32; use x.float\(\)"),
    (lambda: affine(X, ATOMS.int(), 1.0), TypeError, "atoms must be floating point"),
    (lambda: affine(X, ATOMS.double(), 1.0), TypeError, "must have one dtype.*use x.to"),
    (lambda: affine(X[:, :2], ATOMS, 1.0), ValueError, r"x must be \(..., d\) and atoms \(..., n, d\) with one d"),
    (lambda: affine(X, ATOMS[0], 1.0), ValueError, r"x must be \(..., d\) and atoms \(..., n, d\) with one d"),
    (lambda: affine(X, ATOMS, 0.0), ValueError, r"ridge must lie in \(0, inf\], got 0.0"),
    (lambda: affine(X, ATOMS, torch.ones(5)), ValueError, r"ridge must broadcast to \(..., 1\)"),
    (lambda: affine(X, ATOMS, torch.ones(2, 5, 1)), ValueError, "ridge of shape .* has more points than x and atoms"),
    (lambda: affine(X, ATOMS, 1.0, mask=torch.ones(7)), TypeError, "mask must be a boolean tensor"),
    (lambda: affine(X, ATOMS, 1.0, mask=torch.ones(6).bool()), ValueError, "does not broadcast to weights"),
    (lambda: affine(X, torch.ones(3, 7, 4), 1.0), ValueError, "leading axes must broadcast"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message[:60] for *_, message in WRONG])
def test_errors_say_what_was_expected(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
