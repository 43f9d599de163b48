"""The Lasso code with a given number of active atoms: its path is followed from lam_max down until that many are active."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.eager import may_wait
from ..ops.norm import upcast
from ..prox import L1, NonnegativeL1, Penalty
from . import dictionary
from .certificate import duality_gap, widest
from .lasso import Backward, check_options, differentiable
from .support import inverted

UNSOLVED = 1e-7  # an atom that depends on the active ones leaves their equations wrong by more than this
TINY = 1e-10  # a stretch of the path shorter than this, relative to its lam, is a tie


class TargetResult(NamedTuple):
    """Codes (..., n_atoms), certificates (...,), events on each path (...,), and the strength found for each, (..., 1)."""

    code: Tensor
    gap: Tensor
    iterations: Tensor
    lam: Tensor


def lasso_target_k(
    x: Tensor,
    D: Tensor,
    k: int | Tensor,
    *,
    penalty: Penalty = L1(),  # noqa: B008 - a frozen dataclass
    max_iter: int = 1000,
    backward: Backward = "implicit",
    backward_steps: int = 50,
) -> TargetResult:
    r"""Code each sample at the strength lam of its own at which k atoms are active.

    argmin_z  1/2 ‖x - D z‖² + lam ‖z‖_1,  lam the middle of the first stretch below lam_max with ‖z‖_0 = k.

    As lam falls from lam_max the code moves along straight lines, between events at which an atom joins or leaves. The path
    is followed exactly, in float64, event by event: about k of them, more where atoms leave on the way.

    Args:
        x: (..., n_features).
        D: (n_features, n_atoms).
        k: active atoms: an int from 0 to n_atoms, or a tensor that broadcasts to (..., 1). At 0 lam is lam_max.
        penalty: L1 or NonnegativeL1.
        max_iter: events at most.
        backward: "implicit", "truncated" or "danskin", as for `lasso`: the derivative of the code at lam as found. lam itself
            carries no graph.
        backward_steps: steps that "truncated" keeps.

    Returns: TargetResult(code (..., n_atoms), gap (...,), iterations (...,), lam (..., 1)). A sample whose path never has
        exactly k active atoms, or not within `max_iter` events, gets the certified code where its path was left, with another
        number of active atoms: count them.

    Raises: TypeError for dtypes; ValueError for shapes, k, another penalty and backward="unroll".

    Source: Efron, Hastie, Johnstone and Tibshirani 2004, section 3 (the path of the Lasso).

    When not to use: where one strength for all samples is wanted: `lasso`. Under torch.compile and torch.func all `max_iter`
        events are computed; give a smaller number there.

    >>> import torch, sparselayers.functional as F
    >>> found = F.lasso_target_k(torch.tensor([3.0, -2.0, 1.0]), torch.eye(3), 2)
    >>> found.code, found.lam
    (tensor([ 1.5000, -0.5000,  0.0000]), tensor([1.5000]))
    """
    check_options(penalty, 0.0, max_iter, backward, backward_steps)
    dictionary.check(x, D)
    check_target(k, D.shape[1], penalty, backward)
    if isinstance(k, Tensor):
        checks.per_row(k, x, "k")
        x = x.expand(*checks.broadcast(x=x.shape[:-1], k=k.shape[:-1]), x.shape[-1])
    x = x.to(D.dtype)  # under autocast they may differ
    dtype, x, D = x.dtype, upcast(x), upcast(D)
    with torch.autocast(x.device.type, enabled=False):
        code, lam, events = _followed(widest(x.detach()), widest(D.detach()), k, penalty, max_iter)
        code, lam = code.to(D.dtype), lam.to(D.dtype)
        gap = duality_gap(x, D, code, lam, penalty)
        code = differentiable(code, x, D, lam, penalty, backward, backward_steps)
    return TargetResult(code.to(dtype), gap, events.squeeze(-1), lam)


def check_target(k: int | Tensor, n_atoms: int, penalty: Penalty, backward: Backward) -> None:
    """What can be known before any data."""
    if not isinstance(penalty, L1 | NonnegativeL1):
        raise ValueError(f"penalty must be L1() or NonnegativeL1(), whose path is straight, got {penalty!r}; use lasso")
    if backward == "unroll":
        raise ValueError('backward="unroll" has no steps to go through here; use "implicit", "truncated" or "danskin"')
    if not isinstance(k, Tensor):
        checks.count(k, "k", least=0)
        if k > n_atoms:
            raise ValueError(f"k must be at most n_atoms, {n_atoms}, got {k}")


def _followed(x: Tensor, D: Tensor, k: int | Tensor, penalty: Penalty, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, their lam and the events passed (..., 1). All samples go on together; one that is done stays as it is."""
    correlation = x @ D
    lam = penalty.lam_max(correlation).unsqueeze(-1)
    towards = correlation if isinstance(penalty, NonnegativeL1) else correlation.abs()
    z, wanted = torch.zeros_like(correlation), torch.as_tensor(k, device=x.device)
    atoms = torch.arange(D.shape[1], device=x.device)
    done = ~(lam > 0) | (wanted <= 0)
    z = torch.where(lam.isnan(), torch.nan, z)
    entering = towards.argmax(-1, keepdim=True)
    signs = torch.where(atoms == entering, correlation.sign(), 0)
    banned = torch.zeros_like(signs, dtype=torch.bool)
    events = torch.zeros_like(done, dtype=torch.long)
    for _ in range(max_iter):
        if may_wait(x) and bool(done.all()):
            break
        c, member = (x - z @ D.mT) @ D, signs != 0
        u = inverted(signs, signs, D, None)
        a = (u @ D.mT) @ D
        # The atom that came last depends on the others: it cannot join.
        stuck = (torch.where(member, a - signs, 0).abs().amax(-1, keepdim=True) > UNSOLVED) & ~done
        up = _reach(lam - c, 1 - a)
        down = _reach(lam + c, 1 + a) if not isinstance(penalty, NonnegativeL1) else torch.full_like(c, torch.inf)
        joins = torch.where(member | banned, torch.inf, torch.minimum(up, down))
        leaves = torch.where(member & (u * signs < 0), _reach(z * signs, -u * signs), torch.inf)
        first_in, comes = joins.min(-1, keepdim=True)
        first_out, goes = leaves.min(-1, keepdim=True)
        step = torch.minimum(torch.minimum(first_in, first_out), lam)
        count = member.sum(-1, keepdim=True)
        end = step >= lam
        found = ~stuck & ~done & (((count == wanted) & (step > TINY * lam)) | end)
        moving = ~stuck & ~done
        length = torch.where(found, step / 2, step)
        z = torch.where(moving, z + length * u, z)
        lam = torch.where(moving, lam - length, lam)
        turn = moving & ~found
        out = turn & (first_out <= first_in)
        new = torch.where(up.gather(-1, comes) <= down.gather(-1, comes), 1.0, -1.0).to(signs.dtype)
        z = torch.where(out & (atoms == goes), 0, z)
        signs = torch.where(out & (atoms == goes), 0, signs)
        signs = torch.where(turn & ~out & (atoms == comes), new, signs)
        last = stuck & (atoms == entering)
        signs, banned = torch.where(last, 0, signs), banned | last
        entering = torch.where(turn & ~out, comes, entering)
        events, done = events + (~done).long(), done | found
    return z, lam, events


def _reach(distance: Tensor, speed: Tensor) -> Tensor:
    """How far lam falls until the distance is used up; never where it grows."""
    closing = speed > TINY
    return torch.where(closing, distance.clamp_min(0) / torch.where(closing, speed, 1), torch.inf)
