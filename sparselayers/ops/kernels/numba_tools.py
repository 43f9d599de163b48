"""What the Numba kernels share: compiling, finding a row's maximum, and giving rows to threads.

A row's maximum is found on the bits of the floats: integers compare without a special case for NaN, so that the loop is
vectorised. NaN then shows itself in the sums.
"""

# mypy: ignore-errors
from __future__ import annotations

import os
import threading

import numba  # noqa: TID253 - this module is imported only when a kernel is first used
import numpy as np
import torch
from torch import Tensor

LANES = 64
BLOCK = 1024  # float32 sums are closed into float64 this often, so that long rows lose no digits
MOST_PASSES = 200
PARALLEL = 2**15  # entries from which a second thread is worth its start
REASSOCIATE = {"reassoc", "nsz", "contract", "arcp"}  # fast sums; NaN and inf keep their meaning

# One caller at a time has the threads: some of Numba's threading layers abort the process where two do.
_threads = threading.Lock()
_forked = False


def _after_fork() -> None:
    """A forked child has no threads of its parent's pool: it works alone."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def compiled(parallel: bool = False, counted: bool = True, exact: bool = False):
    """numba.njit, kept on disk where there is a place for it; exact=True keeps the order of sums and differences.

    counted=False is for what makes no arrays of its own: the views that it takes are then not counted as references,
    which in short loops costs more than the work.
    """

    def compile_(function):
        options = {"nogil": True, "fastmath": not exact and REASSOCIATE, "parallel": parallel, "error_model": "numpy"}
        if not counted:
            options["_nrt"] = False
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no writable place for the cache
            return numba.njit(**options)(function)

    return compile_


@numba.njit(nogil=True, inline="always")
def key(x, shift, magnitude, signed):
    """The bits of a float as an integer of the same order: of its size if signed, else of its value; its own inverse."""
    return x & magnitude if signed else x ^ ((x >> shift) & magnitude)


@compiled()
def highest(bits, lo, hi, shift, magnitude, signed):
    """The bits of the largest entry of bits[lo:hi]."""
    best = key(bits[lo], shift, magnitude, signed)
    for j in range(lo, hi):
        best = max(best, key(bits[j], shift, magnitude, signed))
    return key(best, shift, magnitude, signed)


@compiled()
def peaks_of(bits, lo, hi, shift, magnitude, signed, lanes):
    """lanes[l] = the bits of the largest of bits[lo + l], bits[lo + l + LANES], ...; the largest of all comes back."""
    wide = np.uint64(LANES)
    for lane in range(wide):
        lanes[lane] = key(bits[lo + lane], shift, magnitude, signed)
    whole = (hi - lo) // wide
    for step in range(np.uint64(1), whole):
        at = lo + step * wide
        for lane in range(wide):
            lanes[lane] = max(lanes[lane], key(bits[at + lane], shift, magnitude, signed))
    at = lo + whole * wide
    for lane in range(hi - at):
        lanes[lane] = max(lanes[lane], key(bits[at + lane], shift, magnitude, signed))
    best = lanes[0]
    for lane in range(wide):
        best = max(best, lanes[lane])
    for lane in range(wide):
        lanes[lane] = key(lanes[lane], shift, magnitude, signed)
    return key(best, shift, magnitude, signed)


@numba.njit(nogil=True, inline="always")
def at(strengths, i):
    """The strength of row i: there is one for all, or one a row."""
    return strengths[i] if strengths.size > 1 else strengths[0]


def launch(serial, parallel, args: tuple, units: int, work: int, most: int | None = None) -> None:
    """All `units` (rows, mostly), on as many threads as torch uses, or `most`, where there is `work` enough for them."""
    parts = min(torch.get_num_threads(), units, units if most is None else most)
    if parts > 1 and work >= PARALLEL and not _forked and _threads.acquire(blocking=False):
        try:
            parallel(*args, units, parts)
        finally:
            _threads.release()
    else:
        serial(*args, np.uint64(0), np.uint64(units))


def flat(x: Tensor) -> np.ndarray:
    return x.detach().view(-1).numpy()


def per_row(x) -> np.ndarray:
    return x.detach().reshape(-1).double().numpy() if isinstance(x, Tensor) else np.full(1, x, np.float64)


def bit_pattern(v: Tensor):
    """The shift that spreads the sign bit, and the mask of all other bits."""
    return (np.int32(31), np.int32(2**31 - 1)) if v.dtype == torch.float32 else (np.int64(63), np.int64(2**63 - 1))
