"""What the attention kernels share: a tile of scores with its masks, and the weights that stand above a row's level."""

from __future__ import annotations

import torch
import triton  # noqa: TID253 - kernels are decorated at import; this module is itself imported lazily
import triton.language as tl  # noqa: TID253 - as above
from torch import Tensor


@triton.jit
def place(n, H, BLOCK: tl.constexpr):
    """This program's block along an axis of n, and the batch and head it works for; blocks of one head are neighbours."""
    blocks = tl.cdiv(n, BLOCK)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    return tl.program_id(0) % blocks, pair, pair // H, pair % H


@triton.jit
def tile(x, steps, row, n, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows of a (n, WIDTH) matrix, 0 past its ends."""
    col = tl.arange(0, PADDED)
    inside = (row[:, None] < n) & (col[None, :] < WIDTH)
    return tl.load(x + row[:, None].to(tl.int64) * steps[2] + col[None, :] * steps[3], mask=inside, other=0.0)


@triton.jit
def put(x, steps, y, row, n, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write y to rows of a (n, WIDTH) matrix."""
    col = tl.arange(0, PADDED)
    inside = (row[:, None] < n) & (col[None, :] < WIDTH)
    at = x + row[:, None].to(tl.int64) * steps[2] + col[None, :] * steps[3]
    tl.store(at, y.to(x.dtype.element_ty), mask=inside)


@triton.jit
def product(x, y):
    """x @ y summed in float32. float32 factors are not rounded to TF32: its 10 bits would move whole supports."""
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def scores(q, k, row, col, L, S, batch, head, how, CAUSAL: tl.constexpr):
    """Scores of queries `row` and keys `col`: -inf where a query may not attend, +inf for NaN.

    `how` is (mask, its steps, bias, its steps, the bias at and below which a key is masked, scale); both may be None.
    """
    s = product(q, tl.trans(k)) * how[5]
    allowed = (row[:, None] < L) & (col[None, :] < S)
    if CAUSAL:
        allowed = allowed & (row[:, None] >= col[None, :])
    if how[0] is not None:
        allowed = allowed & (tl.load(how[0] + _entry(row, col, batch, head, how[1]), mask=allowed, other=0) != 0)
    if how[2] is not None:
        extra = tl.load(how[2] + _entry(row, col, batch, head, how[3]), mask=allowed, other=0.0).to(tl.float32)
        allowed = allowed & ~(extra <= how[4])
        s += extra
    return tl.where(allowed, tl.where(s == s, s, float("inf")), float("-inf"))


@triton.jit
def _entry(row, col, batch, head, steps):
    """Where (batch, head, row, col) lies; a step of 0 repeats an axis."""
    down, along = row[:, None].to(tl.int64) * steps[2], col[None, :].to(tl.int64) * steps[3]
    return batch * steps[0] + head * steps[1] + down + along


@triton.jit
def above(s, top, tau, SQUARE: tl.constexpr):
    """(s - top - tau)_+ with s halved for entmax-1.5; top is +inf or NaN in a row without weights."""
    w = s - top[:, None]
    if SQUARE:
        w = w / 2
    w -= tau[:, None]
    return tl.where(w > 0, w, 0.0)


@triton.jit
def slopes(p, SQUARE: tl.constexpr):
    """How each weight moves with its score, up to a factor a row: sqrt of the weight for entmax-1.5, else 0 or 1."""
    return p if SQUARE else (p > 0).to(tl.float32)


@triton.jit
def used_rows(x, weight, GUARDED: tl.constexpr):
    """x (keys, width) with 0 for keys that no query here uses: a masked key may hold NaN, and 0 NaN is not 0."""
    if GUARDED:
        x = tl.where((tl.max(weight, axis=0) > 0)[:, None], x, 0.0).to(x.dtype)
    return x


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    mapping: str,
    largest: int | None,
) -> dict:
    """The arguments that all attention kernels take by the same names."""
    (B, H, L, E), S, EV = q.shape, k.shape[2], v.shape[3]
    padded_e, padded_ev = (max(16, triton.next_power_of_2(width)) for width in (E, EV))
    # What 255 registers a thread hold, by what the assembler reports for sm_90; float32 products take the most.
    short, wide = q.element_size() == 2, max(padded_e, padded_ev) > 128
    if largest is None:
        largest = (64 if short else 32) // (2 if wide else 1)
    # A mask is read through its strides: what it repeats is never written out.
    if mask is not None:
        mask = mask.expand(B, H, L, S).view(torch.uint8)
    if bias is not None:
        bias = bias.expand(B, H, L, S)
    lowest = 0.0 if bias is None else torch.finfo(bias.dtype).min / 2
    return {
        "how": (
            mask,
            None if mask is None else mask.stride(),
            bias,
            None if bias is None else bias.stride(),
            lowest,
            float(scale),
        ),
        "H": H,
        "L": L,
        "S": S,
        "group": H // k.shape[1],
        "E": E,
        "PADDED_E": padded_e,
        "EV": EV,
        "PADDED_EV": padded_ev,
        "M": min(largest, max(16, triton.next_power_of_2(L))),
        "N": min(largest, max(16, triton.next_power_of_2(S))),
        "CAUSAL": is_causal,
        "SQUARE": mapping == "entmax15",
        "GUARDED": mask is not None or bias is not None,
        "num_warps": 4 if short and not wide else 8,
        "enable_fp_fusion": True,  # Triton's default, said aloud because leaving it out warns
    }
