"""Every operator with its domain. A new penalty is tested by one line in PENALTIES, a new function by one in OPERATORS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.coding.dictionaries import Conv
from sparselayers.coding.ista import unrolled
from sparselayers.sparsify.gates import hard_concrete

PENALTIES: list[sl.Penalty] = [
    sl.L1(),
    sl.NonnegativeL1(),
    sl.ElasticNet(ratio=0.3),
    sl.ElasticNet(ratio=0.0),
    sl.Ridge(),
    sl.L0(),
    sl.Box(-0.7, 0.9),
    sl.Nonnegative(),
    sl.Simplex(),
    sl.Simplex(radius=2.5),
    sl.L1Ball(),
    sl.L1Ball(radius=2.5),
    sl.LInf(),
    sl.GroupL2(),
    sl.GroupL2(sqrt_size=True),
    sl.GroupL0(),
    sl.SparseGroup(),
    sl.SparseGroup(ratio=0.2, sqrt_size=True),
    sl.SparseGroup(ratio=1.0),
    sl.SparseGroup(ratio=0.0),
    sl.Exclusive(),
    sl.GroupExclusive(),
    sl.GroupExclusive(mu=0.2, sqrt_size=True),
    sl.GroupExclusive(mu=0.0),
    sl.GroupExclusive(mu=1.0),
    sl.LHalf(),
    sl.TransformedL1(),
    sl.TransformedL1(a=3.0),
    sl.LogSum(),
    sl.LogSum(eps=0.4),
    sl.MCP(),
    sl.MCP(gamma=0.7),
    sl.SCAD(),
    sl.SCAD(a=2.2),
    sl.L1MinusL2(),
    sl.L1MinusL2(alpha=0.4),
    sl.GroupMCP(),
    sl.SparseGroupL0(),
    sl.SparseGroupL0(ratio=0.1, sqrt_size=True),
    sl.SparseGroupL0(ratio=1.0),
    sl.SparseGroupL0(ratio=0.0),
    sl.Grouped(sl.GroupL2(), size=2),
    sl.Grouped(sl.Exclusive(), size=3),
    sl.Grouped(sl.L1(), size=2),
]


@dataclass(frozen=True)
class Operator:
    """A differentiable function of tensors, and inputs at which it is smooth: away from kinks by far more than 1e-6."""

    name: str
    fn: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    batched: tuple[bool, ...]  # which inputs carry the leading batch axis that vmap takes apart
    traced: Callable[..., Tensor] | None = None  # the same with fewer steps, where a traced loop would be very long

    def __str__(self) -> str:
        return self.name


def _randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _rand(*shape: int, low: float = 0.2, high: float = 1.0, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _prox(penalty: sl.Penalty) -> Operator:
    return Operator(f"{penalty!r}.prox", penalty.prox, (_randn(3, 6, seed=3, scale=2.0), _rand(3, 1)), (True, True))


def _prox_in_metric(penalty: sl.Penalty) -> Operator:
    inputs = (_randn(3, 6, seed=3, scale=2.0), _rand(3, 1), _rand(3, 6, low=0.3, high=3.0, seed=7))
    return Operator(f"{penalty!r}.prox(metric)", penalty.prox, inputs, (True, True, True))


def _value(penalty: sl.Penalty) -> Operator:
    return Operator(f"{penalty!r}.value", penalty.value, (_randn(3, 6, seed=3).abs(),), (True,))


def _lam_max(penalty: sl.Penalty) -> Operator:
    return Operator(f"{penalty!r}.lam_max", penalty.lam_max, (_randn(3, 6, seed=3),), (True,))


def has_lam_max(penalty: sl.Penalty) -> bool:
    try:
        penalty.lam_max(torch.ones(1, 6))
    except ValueError:
        return False
    return True


_v = _randn(3, 7, seed=1, scale=2.0)
_x, _D = _randn(3, 5, seed=2), _randn(5, 8, seed=4)
_q, _k, _val = _randn(2, 4, 5, seed=5), _randn(2, 6, 5, seed=6), _randn(2, 6, 3, seed=7)
_seen = torch.tensor([[True, True, False, True, True, True, True], [True] * 7, [False] * 7])
_keys = _randn(2, 1, 4, 5, seed=6)
_tril = torch.ones(4, 6, dtype=torch.bool).tril(1)


_alphas, _sizes = _rand(3, 1, low=1.1, high=2.9), _rand(3, 1, low=1.2, high=4.8)
_roots = torch.tensor([[0.0], [1.0], [0.5]], dtype=torch.float64)


_p = torch.softmax(_randn(3, 7, seed=11), -1)


def _budget(v: Tensor, dim: int) -> Tensor:
    return F.project_budget(v, 2, dim)


def _gates(log_alpha: Tensor, noise: Tensor) -> Tensor:
    return hard_concrete(log_alpha, noise, 2 / 3, -0.1, 1.1)


def _threshold(f: Callable[..., F.Thresholded]) -> Callable[..., Tensor]:
    return lambda *inputs: f(*inputs, return_threshold=True).threshold


def _weighted(v: Tensor, radius: Tensor, weight: Tensor) -> Tensor:
    return F.project_simplex(v, radius, weight=weight)


def _class_loss(mapping: str | float, **options: object) -> Callable[..., Tensor]:
    return lambda z: F.fenchel_young_loss(z, torch.full(z.shape[:-1], 2), mapping, reduction="none", **options)


def _soft_loss(mapping: object, **options: object) -> Callable[..., Tensor]:
    return lambda z, y: F.fenchel_young_loss(z, y, mapping, reduction="none", **options)


def _alpha_loss(z: Tensor, y: Tensor, s: Tensor) -> Tensor:
    return F.fenchel_young_loss(z, y, 1 + s.square(), reduction="none")


def _half_square(p: Tensor, dim: int) -> Tensor:
    return p.square().sum(dim) / 2


def _coded(code: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
    return lambda x, D, lam: code(x, D, lam, depth=3, **options)


def _lista(variant: str, **options: object) -> Callable[..., Tensor]:
    return sl.LISTA(5, 8, depth=3, dictionary=_D, variant=variant, learn=(), dtype=_D.dtype, **options)


def _conv_coded(x: Tensor, weight: Tensor, lam: Tensor) -> Tensor:
    D = Conv(weight, stride=(2,), padding=(1,), size=tuple(x.shape[-1:]))
    options = {"depth": 3, "penalty": sl.L1(), "schedule": sl.Homotopy(), "step": None}
    return unrolled(x, D, lam, momentum=True, restart="sample", **options).z


def _attend(mapping: str) -> Callable[..., Tensor]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=_tril, mapping=mapping)


def _nearest(backward: str, iterations: int) -> Callable[..., Tensor]:
    return lambda x, atoms: (
        F.simplex_least_squares(x, atoms, locality=0.1, tol=0.0, max_iter=iterations, backward=backward).weights
    )


def _scale_free(q: Tensor, k: Tensor, v: Tensor, locality: Tensor) -> Tensor:
    return F.scale_free_attention(q, k, v, locality=locality, tol=0.0)


def _affine(x: Tensor, atoms: Tensor, ridge: Tensor) -> Tensor:
    return F.affine_least_squares(x, atoms, ridge)


def _affine_of_some(x: Tensor, atoms: Tensor, ridge: Tensor) -> Tensor:
    return F.affine_least_squares(x, atoms, ridge, mask=torch.tensor([True, True, False, True]))


def _latent(max_iter: int) -> sl.LatentGroupL2:
    return sl.LatentGroupL2(((0, 1), (1, 2), (0, 2)), weights=(1.0, 0.8, 1.3), size=2, max_iter=max_iter)


_queries = (2 * _randn(2, 2, 1, seed=5), _randn(2, 3, 1, seed=6), _randn(2, 3, 2, seed=7))


def _converged(max_iter: int, **options: object) -> Callable[..., Tensor]:
    return lambda x, D, lam: F.lasso(x, D, lam, tol=1e-13, max_iter=max_iter, **options).code


_unit = _D / _D.norm(dim=0)
_lasso = (_x, _unit, _rand(3, 1, low=0.3, high=0.6))
_codes = (_x, _D, _rand(3, 1, low=0.1, high=0.3))
OPERATORS: list[Operator] = [
    *map(_prox, PENALTIES),
    *(_prox_in_metric(p) for p in PENALTIES if p.has_metric),
    *(_value(p) for p in PENALTIES if not p.indicator),
    _value(sl.HoyerSquare()),
    Operator("GroupHoyerSquare.value", sl.GroupHoyerSquare().value, (_randn(3, 4, 6, seed=3),), (True,)),
    *(_lam_max(p) for p in PENALTIES if has_lam_max(p)),
    Operator("LatentGroupL2.prox", _latent(12).prox, (_v[:, :6], _rand(3, 1)), (True, True), _latent(1).prox),
    Operator("LatentGroupL2.value", _latent(12).value, (_v[:, :6],), (True,), _latent(1).value),
    Operator("LatentGroupL2.lam_max", _latent(12).lam_max, (_v[:, :6],), (True,)),
    Operator("soft_threshold", F.soft_threshold, (_v, _rand(3, 7)), (True, True)),
    Operator("hard_threshold", F.hard_threshold, (_v, _rand(3, 1)), (True, True)),
    Operator("group_soft_threshold", F.group_soft_threshold, (_v, _rand(3, 1)), (True, True)),
    Operator("exclusive_threshold", F.exclusive_threshold, (_v, _rand(3, 1)), (True, True)),
    Operator(
        "cges_linearized_step", lambda v, t: F.cges_linearized_step(v, t / 8, mu=0.4), (_v, _rand(3, 1)), (True, True)
    ),
    Operator("sigshrink", F.sigshrink, (_v, _rand(3, 7), _rand(3, 1, low=2, high=4)), (True, True, True)),
    Operator("ssbs", F.ssbs, (_v, _rand(3, 1), _rand(3, 1, low=2, high=4), _rand(3, 1)), (True,) * 4),
    Operator("project_simplex", F.project_simplex, (_v, _rand(3, 1)), (True, True)),
    Operator("project_simplex(mask)", lambda v: F.project_simplex(v, mask=_seen[0]), (_v,), (True,)),
    Operator("project_l1_ball", F.project_l1_ball, (_v, _rand(3, 1)), (True, True)),
    Operator("sparsemax", F.sparsemax, (_v,), (True,)),
    Operator("sparsemax(dim=0)", lambda z: F.sparsemax(z, dim=0), (_randn(6, 3, seed=8),), (False,)),
    Operator("entmax15", F.entmax15, (_v,), (True,)),
    Operator("entmax(1.3)", lambda z: F.entmax(z, 1.3), (_v,), (True,)),
    Operator("entmax(3)", lambda z: F.entmax(z, 3.0), (_v,), (True,)),
    Operator("entmax(alpha)", F.entmax, (_v, _alphas), (True, True)),
    # At exactly 1 alpha has a derivative from the right only, so 1 is approached there by adding a square.
    Operator("entmax(alpha=1)", lambda z, s: F.entmax(z, 1 + s.square()), (_v, _roots), (True, True)),
    Operator("entmax(threshold)", lambda z: _threshold(F.entmax)(z, 1.3), (_v,), (True,)),
    Operator("sparsemax(threshold)", _threshold(F.sparsemax), (_v,), (True,)),
    Operator("entmax15(threshold)", _threshold(F.entmax15), (_v,), (True,)),
    Operator("project_budget", F.project_budget, (_v, _sizes), (True, True)),
    Operator("project_budget(mask)", lambda v, k: F.project_budget(v, k, mask=_seen[0]), (_v, _sizes), (True, True)),
    Operator("topk_simplex", lambda v: F.topk_simplex(v, 3), (_v / 4,), (True,)),
    Operator("project_simplex(weight)", _weighted, (_v, _rand(3, 1), _rand(3, 7, seed=9)), (True,) * 3),
    Operator("loss(softmax)", _class_loss("softmax", label_smoothing=0.2), (_v,), (True,)),
    Operator("loss(entmax15)", _class_loss("entmax15", weight=_rand(7)), (_v,), (True,)),
    Operator("loss(sparsemax)", _class_loss("sparsemax"), (_v,), (True,)),
    Operator("loss(sum)", lambda z: F.sparsemax_loss(z, torch.tensor([2, -100, 4]), reduction="sum"), (_v,), (False,)),
    *(Operator(f"loss({a}, probabilities)", _soft_loss(a), (_v, _p), (True, True)) for a in (1.0, 1.5, 2.0)),
    Operator("loss(alpha)", _alpha_loss, (_v, _p, _alphas.sub(1).sqrt()), (True,) * 3),
    Operator("loss(budget)", _soft_loss(_budget, omega=_half_square), (_v, 2 * _p), (True, True)),
    Operator("hard_concrete", _gates, (_randn(3, 7, scale=0.3), _rand(3, 7, low=0.3, high=0.6)), (True, True)),
    Operator("SigShrink", sl.SigShrink(0.5, 3.0), (_v,), (True,)),
    Operator("SoftThreshold", sl.SoftThreshold(0.5), (_v,), (True,)),
    Operator("ista", _coded(F.ista), _codes, (True, False, True)),
    Operator("ista(Homotopy)", _coded(F.ista, schedule=sl.Homotopy()), _codes, (True, False, True)),
    Operator("ista(SparseGroup)", _coded(F.ista, penalty=sl.Grouped(sl.SparseGroup(), 4)), _codes, (True, False, True)),
    Operator("ista(SigShrink)", _coded(F.ista, penalty=sl.SigShrink(0.1, 5.0)), _codes, (True, False, True)),
    Operator("ista(MCP)", _coded(F.ista, penalty=sl.MCP(), schedule=sl.Homotopy()), _codes, (True, False, True)),
    Operator("fista", _coded(F.fista), _codes, (True, False, True)),
    Operator("fista(Homotopy)", _coded(F.fista, schedule=sl.Homotopy()), _codes, (True, False, True)),
    Operator("LISTA(lista)", _lista("lista"), (_x,), (True,)),
    Operator("LISTA(cp)", _lista("cp", schedule=sl.Constant()), (_x,), (True,)),
    Operator("LISTA(alista)", _lista("alista", support=sl.SupportSelection(20, 50), step=0.5), (_x,), (True,)),
    Operator("LISTA(hyper)", _lista("hyper", step=0.5), (_x,), (True,)),
    Operator(
        "conv_fista(Homotopy)", _conv_coded, (_randn(3, 2, 5), _randn(3, 2, 3, seed=1), _codes[2]), (True, False, True)
    ),
    Operator("UnitNorm", sl.UnitNorm(), (_D,), (False,)),
    Operator("subgradient_descent", _coded(F.subgradient_descent), _codes, (True, False, True)),
    Operator("lasso", _converged(300), _lasso, (True, False, True), _converged(40)),
    Operator(
        "lasso(ElasticNet)",
        _converged(300, penalty=sl.ElasticNet(0.4)),
        _lasso,
        (True, False, True),
        _converged(40, penalty=sl.ElasticNet(0.4)),
    ),
    Operator("lasso(unroll)", _converged(4, backward="unroll"), _lasso, (True, False, True)),
    Operator("ridge", F.ridge, _codes, (True, False, True)),
    Operator("analytic_weight", F.analytic_weight, (_D,), (False,)),
    Operator("affine_least_squares", _affine, (_x, _randn(8, 5, seed=6), _rand(1)), (True, False, False)),
    Operator("affine_least_squares(mask)", _affine_of_some, (_x, _randn(3, 4, 5, seed=6), _rand(3, 1)), (True,) * 3),
    Operator("attention(softmax)", _attend("softmax"), (_q, _k, _val), (True, True, True)),
    Operator("attention(sparsemax)", _attend("sparsemax"), (_q, _k, _val), (True, True, True)),
    Operator("attention(entmax15)", _attend("entmax15"), (_q, _k, _val), (True, True, True)),
    Operator(
        "simplex_least_squares", _nearest("implicit", 100), (2 * _q, _keys), (True, True), _nearest("implicit", 12)
    ),
    Operator("scale_free_attention", _scale_free, (*_queries, _rand(1)), (True, True, True, False)),
    Operator("simplex_least_squares(unroll)", _nearest("unroll", 3), (2 * _q, _keys), (True, True)),
]
