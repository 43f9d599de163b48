"""The backward of sparse attention in Triton: three kernels that make the scores of each tile anew.

With r the slopes of the weights (0 or 1 for sparsemax, their square roots for entmax-1.5) and gp = g v^T, the gradient
of the scores is r (gp - mean), mean = sum r gp / sum r along a query's keys. The first kernel finds the means and which
tiles hold weights; the second sums over keys (for q), the third over queries (for k and v), over these tiles alone.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton  # noqa: TID253 - kernels are decorated at import; this module is itself imported lazily
import triton.language as tl  # noqa: TID253 - as above
from torch import Tensor

from .triton_scores import above, place, plan, product, put, scores, slopes, tile, used_rows


@triton.jit
def _mean_kernel(
    q, k, v, g, top_in, tau_in, mean_out, busy, q_steps, k_steps, v_steps, g_steps, how, H, L, S, group,
    E: tl.constexpr, PADDED_E: tl.constexpr, EV: tl.constexpr, PADDED_EV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, SQUARE: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    block, pair, batch, head = place(L, H, M)
    q += batch * q_steps[0] + head * q_steps[1]
    k += batch * k_steps[0] + head // group * k_steps[1]
    v += batch * v_steps[0] + head // group * v_steps[1]
    g += batch * g_steps[0] + head * g_steps[1]
    busy += (pair * tl.cdiv(L, M) + block) * tl.cdiv(S, N)
    row = block * M + tl.arange(0, M)
    queries = tile(q, q_steps, row, L, E, PADDED_E)
    pull = tile(g, g_steps, row, L, EV, PADDED_EV)
    top = tl.load(top_in + pair * L + row, mask=row < L, other=float("inf"))
    tau = tl.load(tau_in + pair * L + row, mask=row < L, other=0.0)
    end = S
    if CAUSAL:
        end = tl.minimum(S, (block + 1) * M)
    moment = tl.zeros((M,), tl.float32)
    mass = tl.zeros((M,), tl.float32)
    for start in range(0, end, N):
        col = start + tl.arange(0, N)
        keys = tile(k, k_steps, col, S, E, PADDED_E)
        s = scores(queries, keys, row, col, L, S, batch, head, how, CAUSAL)
        r = slopes(above(s, top, tau, SQUARE), SQUARE)
        here = tl.sum(r, axis=1)
        some = tl.max(here) > 0
        tl.store(busy + start // N, some.to(tl.int8))
        if some:
            gp = product(pull, tl.trans(tile(v, v_steps, col, S, EV, PADDED_EV)))
            moment += tl.sum(tl.where(r > 0, r * gp, 0.0), axis=1)
            mass += here
    tl.store(mean_out + pair * L + row, moment / tl.where(mass > 0, mass, 1.0), mask=row < L)


@triton.jit
def _query_kernel(
    q, k, v, g, top_in, tau_in, mean_in, busy, gq, q_steps, k_steps, v_steps, g_steps, gq_steps, how, H, L, S, group,
    E: tl.constexpr, PADDED_E: tl.constexpr, EV: tl.constexpr, PADDED_EV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, SQUARE: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    block, pair, batch, head = place(L, H, M)
    q += batch * q_steps[0] + head * q_steps[1]
    k += batch * k_steps[0] + head // group * k_steps[1]
    v += batch * v_steps[0] + head // group * v_steps[1]
    g += batch * g_steps[0] + head * g_steps[1]
    busy += (pair * tl.cdiv(L, M) + block) * tl.cdiv(S, N)
    row = block * M + tl.arange(0, M)
    queries = tile(q, q_steps, row, L, E, PADDED_E)
    pull = tile(g, g_steps, row, L, EV, PADDED_EV)
    top = tl.load(top_in + pair * L + row, mask=row < L, other=float("inf"))
    tau = tl.load(tau_in + pair * L + row, mask=row < L, other=0.0)
    mean = tl.load(mean_in + pair * L + row, mask=row < L, other=0.0)
    end = S
    if CAUSAL:
        end = tl.minimum(S, (block + 1) * M)
    total = tl.zeros((M, PADDED_E), tl.float32)
    for start in range(0, end, N):
        if tl.load(busy + start // N) != 0:
            col = start + tl.arange(0, N)
            keys = tile(k, k_steps, col, S, E, PADDED_E)
            s = scores(queries, keys, row, col, L, S, batch, head, how, CAUSAL)
            r = slopes(above(s, top, tau, SQUARE), SQUARE)
            gp = product(pull, tl.trans(tile(v, v_steps, col, S, EV, PADDED_EV)))
            gs = tl.where(r > 0, r * (gp - mean[:, None]), 0.0)
            total += product(gs.to(keys.dtype), used_rows(keys, r, GUARDED))
    total = tl.where((top == top)[:, None], total * how[5], float("nan"))
    put(gq + batch * gq_steps[0] + head * gq_steps[1], gq_steps, total, row, L, E, PADDED_E)


@triton.jit
def _key_value_kernel(
    q, k, v, g, top_in, tau_in, mean_in, busy, gk, gv, q_steps, k_steps, v_steps, g_steps, gk_steps, gv_steps,
    how, H, L, S, group,
    E: tl.constexpr, PADDED_E: tl.constexpr, EV: tl.constexpr, PADDED_EV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, SQUARE: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    block, _, batch, shared_head = place(S, H // group, N)
    k += batch * k_steps[0] + shared_head * k_steps[1]
    v += batch * v_steps[0] + shared_head * v_steps[1]
    col = block * N + tl.arange(0, N)
    keys = tile(k, k_steps, col, S, E, PADDED_E)
    values = tile(v, v_steps, col, S, EV, PADDED_EV)
    total_k = tl.zeros((N, PADDED_E), tl.float32)
    total_v = tl.zeros((N, PADDED_EV), tl.float32)
    begin = 0
    if CAUSAL:
        begin = block * N // M * M  # earlier queries see none of these keys
    # The heads of a group are summed here, in one order: no atomics, the same bits every time.
    for head in range(shared_head * group, (shared_head + 1) * group):
        pair = batch * H + head
        for start in range(begin, L, M):
            if tl.load(busy + (pair * tl.cdiv(L, M) + start // M) * tl.cdiv(S, N) + block) != 0:
                row = start + tl.arange(0, M)
                queries = tile(q + batch * q_steps[0] + head * q_steps[1], q_steps, row, L, E, PADDED_E)
                pull = tile(g + batch * g_steps[0] + head * g_steps[1], g_steps, row, L, EV, PADDED_EV)
                top = tl.load(top_in + pair * L + row, mask=row < L, other=float("inf"))
                tau = tl.load(tau_in + pair * L + row, mask=row < L, other=0.0)
                mean = tl.load(mean_in + pair * L + row, mask=row < L, other=0.0)
                s = scores(queries, keys, row, col, L, S, batch, head, how, CAUSAL)
                p = above(s, top, tau, SQUARE)
                r = slopes(p, SQUARE)
                gp = product(pull, tl.trans(values))
                gs = tl.where(r > 0, r * (gp - mean[:, None]), 0.0)
                if SQUARE:
                    p = p * p
                total_v += product(tl.trans(p.to(pull.dtype)), pull)
                total_k += product(tl.trans(gs.to(queries.dtype)), queries)
    put(gk + batch * gk_steps[0] + shared_head * gk_steps[1], gk_steps, total_k * how[5], col, S, E, PADDED_E)
    put(gv + batch * gv_steps[0] + shared_head * gv_steps[1], gv_steps, total_v, col, S, EV, PADDED_EV)


def attention_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    levels: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    mapping: Literal["sparsemax", "entmax15"],
    largest: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in q, k and v, from g (B, H, L, Ev) and the levels that `attention_forward` gave; none in the bias.

    A query that attended to nothing gives and gets 0. One whose scores hold NaN gets NaN and gives nothing.
    """
    (B, H, L, _), (_, H_shared, S, _) = q.shape, k.shape
    gq, gk, gv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    if g.numel() == 0 or S == 0:
        return gq, gk, gv
    told = plan(q, k, v, mask, bias, is_causal, scale, mapping, largest)
    rows, columns = triton.cdiv(L, told["M"]), triton.cdiv(S, told["N"])
    busy = torch.zeros((B, H, rows, columns), dtype=torch.int8, device=q.device)
    top, tau = levels
    mean = torch.empty_like(top)
    steps = (q.stride(), k.stride(), v.stride(), g.stride())
    with torch.cuda.device_of(q):
        _mean_kernel[rows * B * H,](q, k, v, g, top, tau, mean, busy, *steps, **told)
        _query_kernel[rows * B * H,](q, k, v, g, top, tau, mean, busy, gq, *steps, gq.stride(), **told)
        _key_value_kernel[columns * B * H_shared,](
            q, k, v, g, top, tau, mean, busy, gk, gv, *steps, gk.stride(), gv.stride(), **told
        )
    return gq, gk, gv
