"""Attention whose (L, S) weights are never whole in memory: blocks of queries.

A block whose weights are mostly exact zeros is kept as its support, and both products with it touch nothing else; what is
saved for the backward is O(support). Any other block is recomputed in the backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..mappings.simplex import entmax15, sparsemax
from ..ops import checks
from ..ops.eager import is_plain_eager
from ..ops.kernels.rows import entmax15_vjp, sparsemax_vjp
from ..ops.kernels.supports import Support, pull_back_, read, support_of
from ..ops.norm import upcast
from . import blocks, masks
from .blocks import Block

BLOCK = {"cpu": 2**18, "cuda": 2**26}  # weights in a block: 1 MB in float32 stays in a CPU core's cache
WORTH = 2**22  # weights in all from which blocks are used without being asked for


def _softmax_vjp(p: Tensor, g: Tensor) -> Tensor:
    return p * (g - (p * g).sum(-1, keepdim=True))


class Mapping(NamedTuple):
    """Scores along a `dim` to weights, the vector-Jacobian product from the weights alone, and whether zeros are many."""

    forward: Callable[[Tensor, int], Tensor]
    vjp: Callable[[Tensor, Tensor], Tensor]
    sparse: bool


MAPPINGS: dict[str, Mapping] = {
    "softmax": Mapping(torch.softmax, _softmax_vjp, False),
    "sparsemax": Mapping(sparsemax, sparsemax_vjp, True),
    "entmax15": Mapping(entmax15, entmax15_vjp, True),
}


class Plan(NamedTuple):
    """All of an attention that is not a query, key or value. `leading` are the query's axes before (L, E)."""

    mapping: Mapping
    attn_mask: Tensor | None
    leading: tuple[int, ...]
    is_causal: bool
    scale: float
    dropout_p: float
    seed: int


def serves(query: Tensor, n_keys: int, attn_mask: Tensor | None) -> bool:
    """Whether blocks are right and worth it: plain eager mode, many weights, and no gradient for the mask."""
    size = query.numel() // max(1, query.shape[-1]) * n_keys
    return is_plain_eager(query) and size >= max(1, WORTH) and not (attn_mask is not None and attn_mask.requires_grad)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
    mapping: str,
) -> Tensor:
    """mapping(scale Q K^T + mask) V block by block, for arguments already checked and grouped heads repeated."""
    used = masks.used_keys(attn_mask, is_causal, query, key)
    if used is not None:
        key, value = (torch.where(used.unsqueeze(-1), x, 0) for x in (key, value))
    masked = () if attn_mask is None else attn_mask.shape[:-2]
    leading = checks.broadcast(
        query=query.shape[:-2], key=key.shape[:-2], value=value.shape[:-2], attn_mask=torch.Size(masked)
    )
    seed = int(torch.randint(2**62, (), device="cpu")) if dropout_p else 0
    plan = Plan(MAPPINGS[mapping], attn_mask, leading, is_causal, scale, dropout_p, seed)
    heads = math.prod(leading)
    flat = [upcast(x).expand(*leading, *x.shape[-2:]).reshape(heads, *x.shape[-2:]) for x in (query, key, value)]
    out = _Attend.apply(*flat, plan)
    return out.view(*leading, *out.shape[-2:]).to(query.dtype)


def cut(query: Tensor, key: Tensor, plan: Plan) -> list[Block]:
    room = BLOCK["cpu" if query.device.type == "cpu" else "cuda"]
    return blocks.cut(query.shape[0], query.shape[1], key.shape[-2], plan.is_causal, room)


def _weights(query: Tensor, key: Tensor, block: Block, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """The block's weights before dropout, and the factors that dropout puts on them."""
    scores = torch.baddbmm(query.new_zeros(()), query, key.mT, beta=0, alpha=plan.scale)
    mask = None if plan.attn_mask is None else blocks.part(plan.attn_mask, block, plan.leading)
    allowed = blocks.allowed(mask, block, plan.is_causal, query.device)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.to(scores.dtype)
    weights = (
        plan.mapping.forward(scores, -1)
        if allowed is None
        else masks.mapped_where(allowed, scores, plan.mapping.forward)
    )
    if not plan.dropout_p:
        return weights, None
    generator = torch.Generator(query.device).manual_seed(plan.seed + block.number)
    chance = torch.rand(weights.shape, generator=generator, device=query.device, dtype=torch.float32)
    kept = (chance >= plan.dropout_p).to(weights.dtype)
    return weights, kept / (1 - plan.dropout_p) if plan.dropout_p < 1 else kept


class _Attend(torch.autograd.Function):
    # Precision is settled before: autocast must not change it for some of the products.
    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
        out = value.new_empty(*query.shape[:-1], value.shape[-1])
        saved: list[Tensor] = []
        ctx.listed = []
        for block in cut(query, key, plan):
            q, k, v = query[block.heads, block.rows], key[block.heads, block.keys], value[block.heads, block.keys]
            weights, kept = _weights(q, k, block, plan)
            found = support_of(weights) if kept is None and plan.mapping.sparse else None
            if found is None:
                out[block.heads, block.rows] = torch.bmm(weights if kept is None else weights * kept, v)
            else:
                out[block.heads, block.rows] = read(found, v)
                saved += found
            ctx.listed.append(found is not None)
        # A tensor kept otherwise could be changed in place before the backward without anybody noticing.
        mask = [] if plan.attn_mask is None else [plan.attn_mask]
        ctx.save_for_backward(query, key, value, *mask, *saved)
        ctx.plan, ctx.masked = plan._replace(attn_mask=None), bool(mask)
        return out

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, *saved = ctx.saved_tensors
        plan = ctx.plan._replace(attn_mask=saved.pop(0)) if ctx.masked else ctx.plan
        if torch.is_grad_enabled() or not is_plain_eager(g):
            return *_differentiable_backward(query, key, value, g, plan), None
        listed = iter(saved)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block, is_listed in zip(cut(query, key, plan), ctx.listed, strict=True):
            q, k, v = query[block.heads, block.rows], key[block.heads, block.keys], value[block.heads, block.keys]
            pull, pulled_key = g[block.heads, block.rows], grad_key[block.heads, block.keys]
            pulled_value = grad_value[block.heads, block.keys]
            if is_listed:
                found = Support(next(listed), next(listed), next(listed))
                root = plan.mapping.vjp is entmax15_vjp
                grad_query[block.heads, block.rows] = pull_back_(
                    found, pull, q, k, v, pulled_key, pulled_value, plan.scale, root
                )
                continue
            weights, kept = _weights(q, k, block, plan)
            pulled_value.baddbmm_((weights if kept is None else weights * kept).mT, pull)
            grad_weights = torch.bmm(pull, v.mT)
            grad_scores = plan.mapping.vjp(weights, grad_weights if kept is None else grad_weights * kept)
            grad_query[block.heads, block.rows] = torch.bmm(grad_scores, k).mul_(plan.scale)
            pulled_key.baddbmm_(grad_scores.mT, q, alpha=plan.scale)
        return grad_query, grad_key, grad_value, None


def _differentiable_backward(query: Tensor, key: Tensor, value: Tensor, g: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """The same with a graph, for a second derivative: all weights are held."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in (query, key, value)]
        query, key, value = inputs
        out = []
        for block in cut(query, key, plan):
            weights, kept = _weights(query[block.heads, block.rows], key[block.heads, block.keys], block, plan)
            weights = weights if kept is None else weights * kept
            out.append((weights @ value[block.heads, block.keys]).flatten(0, 1))
        whole = torch.cat(out).view(*query.shape[:-1], value.shape[-1])
    return torch.autograd.grad(whole, inputs, g, create_graph=wanted)
