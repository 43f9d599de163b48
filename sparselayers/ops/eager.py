"""May Python look at tensor values here? The one file that knows torch's private switches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 does not have it


def may_branch(x: Tensor) -> bool:
    """True where a loop may stop on the values of `x`: a real CPU tensor outside compile, export and torch.func.

    On a GPU looking would synchronise; under a transform or a compiler it is impossible.
    """
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def may_wait(x: Tensor) -> bool:
    """True where a long loop may now and then wait for values of `x`, on a GPU too: not while a graph of it is captured."""
    return may_branch(x) or (
        is_plain_eager(x) and not (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def is_plain_eager(x: Tensor) -> bool:
    """True where a kernel that reads memory may take x: a real tensor, and nobody watching, tracing or transforming."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(x)  # gradients of a whole batch at once
        and not x.is_neg()  # a conjugate's imaginary part: its memory holds the negative
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.jit.is_tracing()
    )
