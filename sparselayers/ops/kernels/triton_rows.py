"""The row operators on CUDA: what to call. Raw functions on contiguous (m, n) rows, n >= 1, without autograd.

16-bit and float32 rows are computed in float32, float64 rows in float64. Imported only where there is a CUDA device or
Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton  # noqa: TID253 - this module is itself imported lazily
import triton.language as tl  # noqa: TID253 - as above
from torch import Tensor

from . import triton_entmax15, triton_waterline

TILE_BYTES = 65536  # the longest row that stays in registers, counted in the working precision
FUSE = {"enable_fp_fusion": True}  # Triton's default, said aloud because leaving it out warns

Strength = float | Tensor


def project(
    v: Tensor, a: Strength, b: Strength, c: Strength, signed: bool, tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """What stands above the level tau with  a sum_i (u_i - tau)_+ = b + c tau,  and tau (m, 1) in working precision.

    u is v; with `signed` it is abs(v), tau is at least 0, and what stands out gets the sign of v: a row that needs no
    cutting comes back as it is, with tau = 0. NaN or +inf (`signed`: inf of either sign) makes its row NaN, tau too.

    Args:
        v: rows. Unsigned, -inf takes no part; a row of nothing else gives 0.
        a: >= 0, a number or one a row, (m,) or (m, 1); likewise b and c.
        signed: whether the entries' sizes compete, and their signs are put back.
        tile: the longest row that stays in registers, a power of two; None chooses.
    """
    work = _work(v)
    out, tau = torch.empty_like(v), v.new_empty((len(v), 1), dtype=work)
    (a, a_step), (b, b_step), (c, c_step) = (_strength(x, v, work) for x in (a, b, c))
    args = (v, out, tau, a, b, c, a_step, b_step, c_step, *v.shape)
    _launch(triton_waterline.project_kernel, v, tile, *args, SIGNED=signed)
    return out, tau


def project_backward(
    out: Tensor, g: Tensor, a: Strength, c: Strength, tau: Tensor, signed: bool, tile: int | None = None
) -> Tensor:
    """The gradient in v, from what `project` gave:  g - s a (s . g) / (a |S| + c)  on the support S, s = sign(out)."""
    gv = torch.empty_like(out)
    (a, a_step), (c, c_step) = (_strength(x, out, _work(out)) for x in (a, c))
    args = (out, g, gv, tau, a, c, a_step, c_step, *out.shape)
    _launch(triton_waterline.project_back_kernel, out, tile, *args, SIGNED=signed)
    return gv


def level(u: Tensor, a: Strength, b: Strength, c: Strength, start: Tensor, tile: int | None = None) -> Tensor:
    """tau (m, 1) with  sum_i a_i (u_i - tau)_+ = b + c tau,  from `start` (m, 1), which is not above it.

    u is float32 or float64; a is a weight an entry, (m, n), or like b and c a number or one a row.
    """
    tau = torch.empty_like(start, memory_format=torch.contiguous_format)
    if per_entry := isinstance(a, Tensor) and a.shape == u.shape and u.shape[1] > 1:
        a, a_step = a.contiguous(), None
    else:
        a, a_step = _strength(a, u, u.dtype)
    (b, b_step), (c, c_step) = (_strength(x, u, u.dtype) for x in (b, c))
    tile = TILE_BYTES // 2 // u.dtype.itemsize if tile is None else tile
    args = (u, tau, a, b, c, start.contiguous(), a_step, b_step, c_step, *u.shape)
    _launch(triton_waterline.level_kernel, u, tile, *args, PER_ENTRY=per_entry)
    return tau


def entmax15(z: Tensor, tile: int | None = None) -> Tensor:
    """(z / 2 - tau)_+², its rows summing to 1; a row all -inf is 0, a row with NaN or +inf is NaN."""
    p = torch.empty_like(z)
    rounding = 4 * torch.finfo(_work(z)).eps
    _launch(triton_entmax15.entmax15_kernel, z, tile, z, p, *z.shape, ROUNDING=rounding)
    return p


def entmax15_backward(p: Tensor, g: Tensor, tile: int | None = None) -> Tensor:
    """The gradient in z:  r (g - r . g / sum r)  with r = sqrt(p)."""
    gz = torch.empty_like(p)
    _launch(triton_entmax15.entmax15_back_kernel, p, tile, p, g, gz, *p.shape)
    return gz


def _work(v: Tensor) -> torch.dtype:
    return torch.float64 if v.dtype == torch.float64 else torch.float32


def _strength(x: Strength, v: Tensor, work: torch.dtype) -> tuple[Strength, int | None]:
    """What the kernel reads: a number and None, or a tensor and its step from row to row.

    Triton passes numbers as float32, so that float64 rows get a tensor of one entry.
    """
    if isinstance(x, Tensor):
        x = x.to(v.device, work).reshape(-1)
        return x, 0 if x.numel() == 1 else x.stride(0)
    return (v.new_full((1,), x), 0) if work == torch.float64 else (float(x), None)


def _launch(kernel, v: Tensor, tile: int | None, *args, **options) -> None:
    """Run `kernel` over the rows of v, in tiles of 16 to 32 entries a thread where the rows are long enough."""
    m, n = v.shape
    if m == 0:
        return
    work = _work(v)
    tile = TILE_BYTES // work.itemsize if tile is None else tile
    block = triton.next_power_of_2(n)
    block = block if block <= tile else tile // 2  # a looped pass needs more registers for each entry
    rows = max(1, 1024 // block)
    if "LONG" in kernel.arg_names:
        options["LONG"] = n > block
    with torch.cuda.device_of(v):
        kernel[triton.cdiv(m, rows),](
            *args,
            WORK=tl.float64 if work == torch.float64 else tl.float32,
            ROWS=rows,
            BLOCK=block,
            num_warps=min(max(rows * block // 512, 4), 16),
            **options,
            **FUSE,
        )
