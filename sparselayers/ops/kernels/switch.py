"""Whether fused kernels run, and which ones serve a tensor."""

from __future__ import annotations

import contextvars
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..eager import is_plain_eager

_enabled = contextvars.ContextVar("sparselayers.kernels", default=os.environ.get("SPARSELAYERS_KERNELS", "1") != "0")


@contextmanager
def kernels(enabled: bool) -> Iterator[None]:
    r"""Run the fused kernels inside this context, or do not: the answers are the same to rounding.

    With kernels a call in plain eager mode is one fused loop a row (Numba on the CPU, Triton on CUDA, where they are
    installed); without them, and always under torch.compile, torch.func and forward mode, it is plain torch operations.
    The environment variable SPARSELAYERS_KERNELS=0 switches them off for a whole process.

    Args:
        enabled: True or False, for this thread and until the end of the context.

    Raises: TypeError if `enabled` is not a bool.

    When not to use: to make results reproducible between runs; either way gives the same bits each time.

    >>> import torch, sparselayers as sl
    >>> with sl.kernels(False):
    ...     sl.functional.sparsemax(torch.tensor([0.5, 1.2, 0.1]))
    tensor([0.1500, 0.8500, 0.0000])
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be True or False, got {enabled!r}")
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)


def serve(x: Tensor) -> str | None:
    """The kernels that may work on x: "numba" or "triton"; None where plain torch operations must."""
    if not is_plain_eager(x) or not _enabled.get() or x.numel() == 0:
        return None
    if x.device.type == "cpu":
        return "numba" if x.dtype in (torch.float32, torch.float64) and _installed("numba") else None
    return "triton" if x.device.type == "cuda" and _installed("triton") else None


@functools.cache
def _installed(package: str) -> bool:
    """Whether it can be imported; one that is there and fails, with a word of warning, is as good as missing."""
    if importlib.util.find_spec(package) is None:
        return False
    try:
        importlib.import_module(package)
    except Exception as error:
        warnings.warn(
            f"{package} cannot be imported, plain torch operations serve: {error}", RuntimeWarning, stacklevel=2
        )
        return False
    return True
