"""Losses for classes in the manner of cross_entropy: for a mapping p(z), the loss whose gradient is p(z) - target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import upcast
from ..ops.rows import row_parameter
from .entmax import HIGH, LOW, Entmax
from .fenchel_young import RowMap, entmax_loss, mapped_loss

ALPHAS = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}
REDUCTIONS = ("none", "mean", "sum")


def sparsemax_loss(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The loss of `sparsemax`, in the place of cross-entropy: exactly 0 once the target leads every class by a margin of 1.

    L(z; y) = max over p in the simplex of <p - y, z> - 1/2 ‖p‖² + 1/2 ‖y‖²  =  1/2 ‖p - y‖² + <y, (tau - z)_+>,
    p = sparsemax(z) = (z - tau)_+.  Gradient: p - y.

    Args, Returns, Raises: as `fenchel_young_loss`, without a mapping.

    Source: Martins and Astudillo, ICML 2016, section 3.3; in the second form, Blondel, Martins and Niculae, JMLR 2020.

    When not to use: where calibrated probabilities of unlikely classes matter (a class outside the support has exactly 0).

    >>> import torch, sparselayers.functional as F
    >>> logits = torch.tensor([[0.5, 1.2, 0.1], [0.5, 1.2, 0.1], [3.0, 1.2, 0.1]])
    >>> F.sparsemax_loss(logits, torch.tensor([1, 0, 0]), reduction="none")
    tensor([0.0225, 0.7225, 0.0000])
    """
    return fenchel_young_loss(logits, target, 2.0, ignore_index, reduction, weight, label_smoothing)


def entmax15_loss(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The loss of `entmax15`, between cross-entropy and `sparsemax_loss`: exactly 0 once the target leads by a margin of 2.

    L(z; y) = max over p in the simplex of <p - y, z> + H(p) - H(y),  H(p) = 4/3 sum (p - p^1.5);  attained at
    p = entmax15(z).  Gradient: p - y.

    Args, Returns, Raises: as `fenchel_young_loss`, without a mapping.

    Source: Peters, Niculae and Martins, ACL 2019, section 3.

    When not to use: where calibrated probabilities of unlikely classes matter (a class outside the support has exactly 0).

    >>> import torch, sparselayers.functional as F
    >>> logits = torch.tensor([[0.5, 1.2, 0.1], [0.5, 1.2, 0.1], [3.0, 0.9, 0.1]])
    >>> F.entmax15_loss(logits, torch.tensor([1, 0, 0]), reduction="none")
    tensor([0.1429, 0.8429, 0.0000])
    """
    return fenchel_young_loss(logits, target, 1.5, ignore_index, reduction, weight, label_smoothing)


def fenchel_young_loss(
    logits: Tensor,
    target: Tensor,
    mapping: str | float | Tensor | Entmax | RowMap,
    ignore_index: int = -100,
    reduction: str = "mean",
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    omega: RowMap | None = None,
) -> Tensor:
    r"""The loss that belongs to a mapping: >= 0, convex in the logits, 0 exactly where the mapping gives the target.

    For p(z) = argmax_p <p, z> - Omega(p):  L(z; y) = max_p {<p, z> - Omega(p)} + Omega(y) - <z, y>.  Gradient: p(z) - y.

    Args:
        logits: (C,), (N, C) or (N, C, d1, ...), as for `torch.nn.functional.cross_entropy`. 16-bit logits are computed in
            float32. A class with logit -inf has probability 0; the loss is +inf where the target has mass on it, with
            gradient 0 there. NaN or +inf makes the loss of its row NaN.
        target: int64 class indices of shape (), (N,) or (N, d1, ...); or probabilities of the shape of logits, floating
            point, whose rows have the sum of the mapping's (1, but k for `project_budget`); they may need grad.
        mapping: "softmax" (the loss is the KL divergence; cross-entropy where the target is a class), "entmax15",
            "sparsemax"; alpha of `entmax`, a number in [1, 4] or a tensor that broadcasts to logits with size 1 at the
            class axis and may need grad; an `Entmax` module, of which alpha is used; or a function (z, dim) -> p with its
            `omega`.
        ignore_index: rows of this class index have loss 0 and gradient 0, whatever their logits, and are not counted in
            the mean. Without meaning for probabilities.
        reduction: "none", "sum", or "mean": the sum over the weights of all rows, as cross_entropy has it (for
            probabilities: over the number of rows). A mean over no rows is 0, where cross_entropy has NaN: one batch of
            padding shall not end a training.
        weight: (C,), a weight for each class. The loss has no parts that belong to classes, so a row is weighted as a whole:
            by sum_c weight_c target_c, the target before smoothing. For a class index that is weight[target].
        label_smoothing: in [0, 1]; eps puts (1 - eps) target + eps / C in the place of the target.
        omega: (p, dim) -> (...), the Omega of a function: 1/2 ‖p‖² for the projections. Its derivative is needed only for
            the gradient in probabilities. The derivatives are then right to second order (to all orders where the mapping
            is piecewise linear, as projections are), otherwise to the order that the mapping's own are.

    Returns: 0-d, or the shape of the class indices for reduction "none"; the dtype of logits.

    Raises: TypeError for integer logits, a target that is neither int64 nor floating point, or an unknown kind of mapping;
        ValueError for shapes that do not fit, an unknown name, alpha outside [1, 4], a function without omega (or an omega
        without a function), label_smoothing outside [0, 1]. A class index out of range is an error on the CPU.

    Source: Blondel, Martins and Niculae, JMLR 2020, definition 2 and proposition 2.

    When not to use: with probabilities instead of logits; for softmax, where torch's cross_entropy is fused.

    >>> import torch, sparselayers.functional as F
    >>> logits = torch.tensor([[0.5, 1.2, 0.1, 0.4]])
    >>> F.fenchel_young_loss(logits, torch.tensor([1]), 1.25)
    tensor(0.4101)
    >>> two_of_four = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    >>> F.fenchel_young_loss(
    ...     logits, two_of_four, lambda z, dim: F.project_budget(z, 2, dim), omega=lambda p, dim: p.square().sum(dim) / 2
    ... )
    tensor(0.2100)
    """
    axis = _check(logits, target, reduction, weight, label_smoothing)
    alpha = _alpha(mapping, omega, logits, axis)
    rows = upcast(logits).movedim(axis, -1)
    labels = _labels(rows, target.movedim(axis, -1) if target.is_floating_point() else target, ignore_index, weight)
    rows, y = labels.rows, labels.y
    if label_smoothing:
        y = (1 - label_smoothing) * y + label_smoothing / rows.shape[-1]
    if alpha is not None:
        loss = entmax_loss(rows, y, alpha, free_sum=target.is_floating_point())
    else:
        loss = mapped_loss(rows, y, mapping, omega)  # type: ignore[arg-type]
    if labels.share is not None:
        loss = torch.where(labels.share == 0, 0, labels.share * loss)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        counted = labels.counted.sum()
        loss = loss / torch.where(counted == 0, 1, counted)
    return loss.to(logits.dtype)


class _Labels(NamedTuple):
    """Rows (..., C), their targets as probabilities (..., C), what each counts in the sum (1 if None) and in the mean."""

    rows: Tensor
    y: Tensor
    share: Tensor | None
    counted: Tensor


def _labels(rows: Tensor, target: Tensor, ignore_index: int, weight: Tensor | None) -> _Labels:
    ones = torch.ones_like(rows[..., 0]).detach()
    if target.is_floating_point():
        y = target.to(rows.dtype)
        return _Labels(rows, y, None if weight is None else (weight.to(rows.dtype) * y).sum(-1), ones)
    ignored = target == ignore_index
    index = torch.where(ignored, 0, target).unsqueeze(-1)
    y = torch.zeros_like(rows).detach().scatter(-1, index, 1.0)
    share = torch.where(ignored, 0, ones if weight is None else (weight.to(rows.dtype) * y).sum(-1))
    return _Labels(torch.where(ignored.unsqueeze(-1), 0, rows), y, share, share)


def _alpha(
    mapping: str | float | Tensor | Entmax | RowMap, omega: RowMap | None, logits: Tensor, axis: int
) -> float | Tensor | None:
    """The alpha of a mapping that is an entmax, None for a function."""
    if callable(mapping) and not isinstance(mapping, Entmax):
        if omega is None:
            raise ValueError(
                "the loss of a function needs its omega: give omega=lambda p, dim: ..., the Omega(p) whose argmax of "
                f"<p, z> - Omega(p) the function is (1/2 ‖p‖² for a projection), or one of {sorted(ALPHAS)}, or an alpha"
            )
        return None
    if omega is not None:
        raise ValueError("omega belongs to a mapping that is a function (z, dim) -> p; leave it out for the others")
    if isinstance(mapping, str):
        if mapping not in ALPHAS:
            raise ValueError(f"mapping must be one of {sorted(ALPHAS)}, an alpha or a function, got {mapping!r}")
        return ALPHAS[mapping]
    alpha = mapping.alpha if isinstance(mapping, Entmax) else mapping
    if isinstance(alpha, Tensor):
        return row_parameter(alpha, logits, axis, "alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"mapping must be a name, an alpha, an Entmax or a function, got {type(alpha).__name__}")
    checks.number(alpha, "alpha", LOW, HIGH)
    return alpha


def _check(logits: Tensor, target: Tensor, reduction: str, weight: Tensor | None, label_smoothing: float) -> int:
    """The class axis, once all shapes and dtypes are right."""
    checks.floating(logits, "logits")
    if logits.ndim == 0:
        raise ValueError("logits must be (C,), (N, C) or (N, C, d1, ...), got a 0-d tensor")
    axis = min(logits.ndim - 1, 1)
    shape, classes = tuple(logits.shape), logits.shape[axis]
    if classes == 0:
        raise ValueError(f"logits must have at least one class, got shape {shape}")
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}; use torch.as_tensor(target)")
    if target.dtype != torch.int64 and not target.is_floating_point():
        raise TypeError(f"target must be int64 (classes) or floating point (probabilities), got {target.dtype}")
    expected = shape if target.is_floating_point() else shape[:axis] + shape[axis + 1 :]
    if tuple(target.shape) != expected:
        kind = "probabilities" if target.is_floating_point() else "class indices"
        raise ValueError(
            f"target must be {kind} of shape {expected} for logits of shape {shape} (classes on axis {axis}), "
            f"got {tuple(target.shape)}"
        )
    check_options(reduction, weight, label_smoothing)
    if weight is not None and tuple(weight.shape) != (classes,):
        raise ValueError(f"weight must have shape ({classes},), one a class, got {tuple(weight.shape)}")
    return axis


def check_options(reduction: str, weight: Tensor | None, label_smoothing: float) -> None:
    """ValueError or TypeError for options that are wrong whatever the logits are."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if weight is not None:
        checks.floating(weight, "weight")
    if isinstance(label_smoothing, Tensor):
        raise TypeError("label_smoothing must be a number, got a tensor; use float(label_smoothing)")
    checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
