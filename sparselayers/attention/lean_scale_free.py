"""Scale-free attention whose (L, S) weights are never whole in memory: blocks of queries.

Of a block's weights only the support is kept, at most E + 1 keys a query, and the backward takes the derivative of the
optimum from there, block by block: nothing is solved twice.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.eager import is_plain_eager, may_branch
from ..ops.norm import upcast
from . import blocks, masks
from .blocks import Block
from .simplex import Strength, simplex_least_squares, with_derivative

BLOCK = {"cpu": 2**20, "cuda": 2**26}  # weights in a block
WORTH = 2**22  # weights in all from which blocks are used


class Plan(NamedTuple):
    """All of an attention that needs no gradient. `leading` are the query's axes before (L, E)."""

    attn_mask: Tensor | None
    leading: tuple[int, ...]
    is_causal: bool
    tol: float


def serves(query: Tensor, n_keys: int) -> bool:
    """Whether blocks are right and worth it: plain eager mode, and many weights."""
    return is_plain_eager(query) and query.numel() // max(1, query.shape[-1]) * n_keys >= max(1, WORTH)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    locality: Strength,
    ridge: Strength,
    tol: float,
) -> Tensor:
    """Scale-free attention block by block, for arguments already checked and grouped heads repeated."""
    used = masks.used_keys(attn_mask, is_causal, query, key)
    if used is not None:
        key, value = (torch.where(used.unsqueeze(-1), x, 0) for x in (key, value))
    leading = checks.broadcast(
        query=query.shape[:-2],
        key=key.shape[:-2],
        value=value.shape[:-2],
        attn_mask=torch.Size(()) if attn_mask is None else attn_mask.shape[:-2],
    )
    heads = math.prod(leading)
    flat = [upcast(x).expand(*leading, *x.shape[-2:]).reshape(heads, *x.shape[-2:]) for x in (query, key, value)]
    strengths = [
        _a_head(x, leading, query.shape[-2], name) if isinstance(x, Tensor) else x
        for name, x in (("locality", locality), ("ridge", ridge))
    ]
    out = _Attend.apply(*flat, *strengths, Plan(attn_mask, leading, is_causal, tol))
    return out.view(*leading, *out.shape[-2:])


def _a_head(strength: Tensor, leading: tuple[int, ...], n_queries: int, name: str) -> Tensor:
    """(heads, L or 1, 1)"""
    while strength.ndim < 2:
        strength = strength.unsqueeze(0)
    checks.per_row(strength, strength, name)
    batch = torch.Size((*leading, n_queries))
    if checks.broadcast(**{name: strength.shape[:-1], "queries": batch}) != batch:
        raise ValueError(f"{name} of shape {tuple(strength.shape)} has more queries than there are, {tuple(batch)}")
    return strength.expand(*leading, *strength.shape[-2:]).reshape(-1, *strength.shape[-2:])


def _cut(query: Tensor, key: Tensor, plan: Plan) -> list[Block]:
    room = BLOCK["cpu" if query.device.type == "cpu" else "cuda"]
    return blocks.cut(query.shape[0], query.shape[1], key.shape[1], plan.is_causal, room)


def _places(block: Block, locality: Strength, ridge: Strength) -> list[Any]:
    """Where the block's query, key, value and strengths stand in the whole ones; None for a number."""
    query, keys = (block.heads, block.rows), (block.heads, block.keys)
    strengths = [
        None if not isinstance(x, Tensor) else query if x.shape[1] > 1 else block.heads for x in (locality, ridge)
    ]
    return [query, keys, keys, *strengths]


def _sliced(inputs: list[Any], places: list[Any]) -> list[Any]:
    return [x if at is None else x[at] for x, at in zip(inputs, places, strict=True)]


def _allowed(block: Block, plan: Plan, device: torch.device) -> Tensor | None:
    mask = None if plan.attn_mask is None else blocks.part(plan.attn_mask, block, plan.leading)
    return blocks.allowed(mask, block, plan.is_causal, device)


def _support(weights: Tensor, ridge: Strength, width: int) -> tuple[Tensor, Tensor]:
    """The largest weights of each query, as many as are not 0, and their places."""
    n = weights.shape[-1]
    if may_branch(weights):
        most = int((weights != 0).sum(-1).amax()) if weights.numel() else 0
    else:
        most = n if isinstance(ridge, Tensor) or ridge > 0 else min(n, width + 2)
    weight, place = weights.topk(most, dim=-1, sorted=False)
    return weight, place.int()


def _again(weight: Tensor, place: Tensor, parts: list[Any], block: Block, plan: Plan) -> Tensor:
    """The block's output with its derivative, from the support of its weights."""
    query, key, value, locality, ridge = parts
    y = weight.new_zeros(*weight.shape[:-1], key.shape[-2]).scatter(-1, place.long(), weight)
    return with_derivative(y, query, key, _allowed(block, plan, query.device), locality, ridge) @ value


class _Attend(torch.autograd.Function):
    # Precision is settled before: autocast must not change it for some of the products.
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, locality: Strength, ridge: Strength, plan: Plan
    ) -> Tensor:
        out = value.new_empty(*query.shape[:-1], value.shape[-1])
        saved: list[Tensor] = []
        inputs = [query, key, value, locality, ridge]
        for block in _cut(query, key, plan):
            q, k, v, near, even = _sliced(inputs, _places(block, *inputs[3:]))
            mask = _allowed(block, plan, query.device)
            weights = simplex_least_squares(
                q, k.unsqueeze(-3), mask=mask, locality=near, ridge=even, tol=plan.tol
            ).weights
            out[block.heads, block.rows] = weights @ v
            if any(ctx.needs_input_grad):
                saved += _support(weights, ridge, q.shape[-1])
        # A tensor kept otherwise could be changed in place before the backward without anybody noticing.
        strengths = [x if isinstance(x, Tensor) else None for x in (locality, ridge)]
        ctx.save_for_backward(query, key, value, *strengths, plan.attn_mask, *saved)
        ctx.plan = plan._replace(attn_mask=None)
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in (locality, ridge)]
        return out

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, *strengths, attn_mask = ctx.saved_tensors[:6]
        supports = iter(ctx.saved_tensors[6:])
        plan = ctx.plan._replace(attn_mask=attn_mask)
        inputs = [query, key, value, *(x if t is None else t for x, t in zip(ctx.numbers, strengths, strict=True))]
        wanted = ctx.needs_input_grad[:5]
        pieces = [
            (block, _places(block, *inputs[3:]), next(supports), next(supports)) for block in _cut(query, key, plan)
        ]
        if torch.is_grad_enabled() or not is_plain_eager(g):
            return *_differentiable_backward(inputs, wanted, pieces, g, plan), None
        totals = [torch.zeros_like(x) if want else None for x, want in zip(inputs, wanted, strict=True)]
        for block, places, weight, place in pieces:
            parts = [x.detach() if isinstance(x, Tensor) else x for x in _sliced(inputs, places)]
            leaves = [x.requires_grad_() for x, want in zip(parts, wanted, strict=True) if want]
            with torch.enable_grad():
                out = _again(weight, place, parts, block, plan)
            grads = iter(torch.autograd.grad(out, leaves, g[block.heads, block.rows]))
            for total, at in zip(totals, places, strict=True):
                if total is not None:
                    total[at] += next(grads)
        return *totals, None


def _differentiable_backward(
    inputs: list[Any], wanted: tuple[bool, ...], pieces: list[Any], g: Tensor, plan: Plan
) -> list[Tensor | None]:
    """The same with a graph, for a second derivative: all weights are held."""
    keep = torch.is_grad_enabled()
    query, value = inputs[0], inputs[2]
    with torch.enable_grad():
        inputs = [
            x if not want or x.requires_grad else x.detach().requires_grad_()
            for x, want in zip(inputs, wanted, strict=True)
        ]
        out = [_again(weight, place, _sliced(inputs, places), block, plan) for block, places, weight, place in pieces]
        whole = torch.cat([part.flatten(0, 1) for part in out]).view(*query.shape[:-1], value.shape[-1])
    leaves = [x for x, want in zip(inputs, wanted, strict=True) if want]
    grads = iter(torch.autograd.grad(whole, leaves, g, create_graph=keep))
    return [next(grads) if want else None for want in wanted]
