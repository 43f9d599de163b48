"""The waterline on rows, in Triton for CUDA: one kernel forward, one backward, one for the level alone.

A program holds a tile of rows in registers and makes all Newton passes on it: one read, one write. Of a row longer than
the tile only the first chunk stays there, the rest is read again in every pass. To make these passes few the row is
first folded, each lane keeping the largest of its entries: what is left is a part of the row, so its level lies below
the row's, mostly by next to nothing, and costs one read.

The functions to call are in triton_rows.
"""

from __future__ import annotations

import triton  # noqa: TID253 - kernels are decorated at import; this module is itself imported lazily
import triton.language as tl  # noqa: TID253 - as above


@triton.jit
def load(v, col, n, exists, WORK: tl.constexpr):
    return tl.load(v + col, mask=exists & (col < n), other=0.0).to(WORK)


@triton.jit
def heights(x, col, n, SIGNED: tl.constexpr):
    """x or abs(x); +inf for NaN, so that the row's top tells whether the row is spoilt; -inf past its end."""
    u = tl.abs(x) if SIGNED else x
    return tl.where(col < n, tl.where(u == u, u, float("inf")), float("-inf"))


@triton.jit
def _per_row(x, step, row, exists, WORK: tl.constexpr):
    """A strength: a number (no step), or a pointer to one a row (step 0: to one for all)."""
    if step is None:  # noqa: SIM108 - the compiler must see only one of the two
        y = tl.zeros(row.shape, WORK) + x
    else:
        y = tl.load(x + row * step, mask=exists, other=0.0).to(WORK)
    return y


@triton.jit
def row_sum(x):
    return tl.sum(x, axis=1, keep_dims=True)


@triton.jit
def tops(u):
    """The row's largest entry, 0 where there is none."""
    top = tl.max(u, axis=1, keep_dims=True)
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _newton(tau, area, mass, members, b, c):
    """A step of the waterline equation; none where nothing stands out."""
    return tau + tl.where(members > 0, area - (b + c * tau), 0.0) / tl.where(mass > 0, mass, 1.0)


@triton.jit
def _climb(
    w, tau, a, b, c, v, top, exists, col, n,
    SIGNED: tl.constexpr, WORK: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Newton from below: w in registers, if LONG together with the rest of the rows v.

    In exact arithmetic the support shrinks with every pass until it is final, so the loop ends where no support does
    any more; `size` only falls, so rounding cannot keep it going.
    """
    size = tl.full(tau.shape, 2147483647, tl.int32)
    moving = 1
    while moving > 0:
        area = tl.maximum(w - tau, 0.0)
        count = (area > 0).to(tl.int32)
        if LONG:
            for start in range(BLOCK, n, BLOCK):
                u = heights(load(v, start + col, n, exists, WORK), start + col, n, SIGNED)
                above = tl.maximum(u - top - tau, 0.0)
                area += above
                count += (above > 0).to(tl.int32)
        members = row_sum(count)
        tau = _newton(tau, a * row_sum(area), a * members + c, members, b, c)
        moving = tl.max((members < size).to(tl.int32))
        size = tl.minimum(members, size)
    return tau


@triton.jit
def _stand_out(x, w, tau, inside, spoilt, SIGNED: tl.constexpr):
    """What is left of x, with its sign; x itself in a row that lies inside the ball."""
    y = tl.maximum(w - tau, 0.0)
    if SIGNED:
        y = tl.where(inside, x, tl.where((x < 0) & (y > 0), -y, y))
    return tl.where(spoilt, float("nan"), y)


@triton.jit
def project_kernel(
    v, out, tau_out, a, b, c, a_step, b_step, c_step, m, n,
    SIGNED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    exists = row < m
    a = _per_row(a, a_step, row, exists, WORK)
    b = _per_row(b, b_step, row, exists, WORK)
    c = _per_row(c, c_step, row, exists, WORK)
    v += row * n
    out += row * n
    x = load(v, col, n, exists, WORK)
    u = heights(x, col, n, SIGNED)
    folded = u
    total = tl.maximum(u, 0.0)
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            more = heights(load(v, start + col, n, exists, WORK), start + col, n, SIGNED)
            folded = tl.maximum(folded, more)
            total += tl.maximum(more, 0.0)
    top = tops(folded)
    spoilt = top == float("inf")
    inside = spoilt
    if SIGNED:
        inside = a * row_sum(total) <= b
    # Relative to the top, b becomes b + c top, and what the largest entry keeps suffers no cancellation.
    b += c * top
    # The largest entry alone gives the highest level that is sure to lie below.
    tau = -b / tl.where(a + c > 0, a + c, 1.0)
    tau = _climb(folded - top, tau, a, b, c, v, top, exists, col, n, SIGNED, WORK, BLOCK, False)
    if LONG:
        tau = _climb(u - top, tau, a, b, c, v, top, exists, col, n, SIGNED, WORK, BLOCK, True)
    y = _stand_out(x, u - top, tau, inside, spoilt, SIGNED)
    tl.store(out + col, y.to(out.dtype.element_ty), mask=exists & (col < n))
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            x = load(v, start + col, n, exists, WORK)
            y = _stand_out(x, heights(x, start + col, n, SIGNED) - top, tau, inside, spoilt, SIGNED)
            tl.store(out + start + col, y.to(out.dtype.element_ty), mask=exists & (start + col < n))
    level = tau + top
    if SIGNED:
        level = tl.where(inside, 0.0, tl.maximum(level, 0.0))
    tl.store(tau_out + row, tl.where(spoilt, float("nan"), level), mask=exists)


@triton.jit
def level_kernel(
    u, tau_out, weight, b, c, start_in, a_step, b_step, c_step, m, n,
    PER_ENTRY: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same climb from a given start, with a weight an entry or a row; always looped, since it reads two matrices."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    exists = row < m
    b = _per_row(b, b_step, row, exists, WORK)
    c = _per_row(c, c_step, row, exists, WORK)
    if PER_ENTRY:
        weight += row * n
    else:
        scale = _per_row(weight, a_step, row, exists, WORK)
    u += row * n
    tau = tl.load(start_in + row, mask=exists, other=0.0)
    tau = tl.where(tau == float("-inf"), 0.0, tau)  # of a row that holds nothing
    highest = tau
    size = tl.full(tau.shape, 2147483647, tl.int32)
    moving = 1
    while moving > 0:
        area = tl.zeros((ROWS, BLOCK), WORK)
        mass = area
        count = tl.zeros((ROWS, BLOCK), tl.int32)
        for start in range(0, n, BLOCK):
            above = heights(load(u, start + col, n, exists, WORK), start + col, n, False) - tau
            if PER_ENTRY:
                a = load(weight, start + col, n, exists, WORK)
                area += tl.where(above > 0, a * above, 0.0)
                mass += tl.where(above > 0, a, 0.0)
            else:
                area += tl.where(above > 0, above, 0.0)
            count += (above > 0).to(tl.int32)
        members = row_sum(count)
        total = row_sum(area)
        if PER_ENTRY:
            weights = row_sum(mass)
        else:
            total *= scale
            weights = scale * members
        highest = tl.maximum(highest, total)  # +inf where an entry is
        tau = _newton(tau, total, weights + c, members, b, c)
        moving = tl.max((members < size).to(tl.int32))
        size = tl.minimum(members, size)
    tl.store(tau_out + row, tl.where(highest == float("inf"), float("nan"), tau), mask=exists)


@triton.jit
def _signs(out):
    return tl.where(out > 0, 1.0, tl.where(out < 0, -1.0, 0.0))


@triton.jit
def project_back_kernel(
    out, g, gv, tau, a, c, a_step, c_step, m, n,
    SIGNED: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    exists = row < m
    a = _per_row(a, a_step, row, exists, WORK)
    c = _per_row(c, c_step, row, exists, WORK)
    out += row * n
    g += row * n
    gv += row * n
    s = _signs(load(out, col, n, exists, WORK))
    d = load(g, col, n, exists, WORK)
    inner = tl.where(s == 0, 0.0, s * d)
    count = tl.abs(s).to(tl.int32)
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            more = _signs(load(out, start + col, n, exists, WORK))
            inner += tl.where(more == 0, 0.0, more * load(g, start + col, n, exists, WORK))
            count += tl.abs(more).to(tl.int32)
    mass = a * row_sum(count) + c
    shift = a * row_sum(inner) / tl.where(mass > 0, mass, 1.0)
    level = tl.load(tau + row, mask=exists, other=0.0)
    y = _on_the_support(d, s, shift, level, SIGNED)
    tl.store(gv + col, y.to(gv.dtype.element_ty), mask=exists & (col < n))
    if LONG:
        for start in range(BLOCK, n, BLOCK):
            s = _signs(load(out, start + col, n, exists, WORK))
            y = _on_the_support(load(g, start + col, n, exists, WORK), s, shift, level, SIGNED)
            tl.store(gv + start + col, y.to(gv.dtype.element_ty), mask=exists & (start + col < n))


@triton.jit
def _on_the_support(d, s, shift, level, SIGNED: tl.constexpr):
    y = tl.where(s == 0, 0.0, d - s * shift)
    if SIGNED:
        y = tl.where(level <= 0, d, y)
    return tl.where(level == level, y, float("nan"))
