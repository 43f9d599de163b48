"""Entmax with alpha = 1.5 on rows, in Triton for CUDA: tiles, chunks and folding as in triton_waterline."""

from __future__ import annotations

import triton  # noqa: TID253 - kernels are decorated at import; this module is itself imported lazily
import triton.language as tl  # noqa: TID253 - as above

from .triton_waterline import heights, load, row_sum, tops


@triton.jit
def climb(
    w, tau, z, top, exists, col, n,
    ROUNDING: tl.constexpr, WORK: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Newton from below on ‖(s - tau)_+‖ - 1, convex and falling: w in registers, if LONG with the rest of the rows z.

    A row that has moved by no more than rounding stays where it is, whatever the others of its tile do.
    """
    live = tau < 0
    moving = 1
    while moving > 0:
        area = tl.maximum(w - tau, 0.0)
        square = area * area
        if LONG:
            for start in range(BLOCK, n, BLOCK):
                u = heights(load(z, start + col, n, exists, WORK), start + col, n, False)
                above = tl.maximum((u - top) / 2 - tau, 0.0)
                area += above
                square += above * above
        area = row_sum(area)
        square = row_sum(square)
        step = tl.where(area > 0, square - tl.sqrt(square), 0.0) / tl.where(area > 0, area, 1.0)
        tau += tl.where(live, step, 0.0)
        live = live & (step > ROUNDING)
        moving = tl.max(live.to(tl.int32))
    return tau


@triton.jit
def entmax15_kernel(
    z, out, m, n,
    ROUNDING: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    exists = row < m
    z += row * n
    out += row * n
    u = heights(load(z, col, n, exists, WORK), col, n, False)
    folded = u
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            folded = tl.maximum(folded, heights(load(z, start + col, n, exists, WORK), start + col, n, False))
    top = tops(folded)
    spoilt = top == float("inf")
    # At top - 1 the largest entry alone sums to 1.
    tau = climb((folded - top) / 2, tl.zeros_like(top) - 1.0, z, top, exists, col, n, ROUNDING, WORK, BLOCK, False)
    if LONG:
        tau = climb((u - top) / 2, tau, z, top, exists, col, n, ROUNDING, WORK, BLOCK, True)
    y = _square(u, top, tau, spoilt)
    tl.store(out + col, y.to(out.dtype.element_ty), mask=exists & (col < n))
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            y = _square(load(z, start + col, n, exists, WORK), top, tau, spoilt)
            tl.store(out + start + col, y.to(out.dtype.element_ty), mask=exists & (start + col < n))


@triton.jit
def _square(u, top, tau, spoilt):
    above = tl.maximum((u - top) / 2 - tau, 0.0)
    return tl.where(spoilt, float("nan"), above * above)


@triton.jit
def entmax15_back_kernel(
    p, g, gz, m, n,
    WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    exists = row < m
    p += row * n
    g += row * n
    gz += row * n
    r = tl.sqrt(load(p, col, n, exists, WORK))
    d = load(g, col, n, exists, WORK)
    inner = tl.where(r == 0, 0.0, r * d)
    total = r
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            more = tl.sqrt(load(p, start + col, n, exists, WORK))
            inner += tl.where(more == 0, 0.0, more * load(g, start + col, n, exists, WORK))
            total += more
    mass = row_sum(total)
    mean = row_sum(inner) / tl.where(mass == 0, 1.0, mass)
    y = tl.where(r == 0, 0.0, r * (d - mean))
    tl.store(gz + col, y.to(gz.dtype.element_ty), mask=exists & (col < n))
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            r = tl.sqrt(load(p, start + col, n, exists, WORK))
            y = tl.where(r == 0, 0.0, r * (load(g, start + col, n, exists, WORK) - mean))
            tl.store(gz + start + col, y.to(gz.dtype.element_ty), mask=exists & (start + col < n))
