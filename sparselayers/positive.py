"""Strengths of a module, fixed or learned. A learned one lives as its logarithm: unconstrained, and positive after exp."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def hold(module: nn.Module, name: str, value: float | Tensor | None, learn: bool, like: Tensor | None = None) -> None:
    """Give `module` the strength `name`: a parameter `log_name` if learned, else a buffer or plain number `fixed_name`."""
    dtype = None if like is None else like.dtype
    device = None if like is None else like.device
    if learn:
        if not isinstance(value, Tensor) and not value:
            raise ValueError(f"a learned {name} stays positive and cannot start at {value!r}; give {name} > 0")
        start = torch.as_tensor(value, dtype=dtype, device=device).detach()
        module.register_parameter(f"log_{name}", nn.Parameter(start.log()))
    elif isinstance(value, Tensor):
        module.register_buffer(f"fixed_{name}", value.detach().clone().to(dtype=dtype, device=device))
    else:
        setattr(module, f"fixed_{name}", value)


def held(module: nn.Module, name: str) -> float | Tensor:
    """The value of the strength `name`, with its gradient where it is learned."""
    log = getattr(module, f"log_{name}", None)
    return getattr(module, f"fixed_{name}") if log is None else log.exp()


def brief(module: nn.Module, name: str) -> str:
    """How `extra_repr` shows the strength."""
    if getattr(module, f"log_{name}", None) is not None:
        return "learned"
    value = getattr(module, f"fixed_{name}")
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
