"""The transforms that every operator must pass, each a function of an operator that raises where it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .registry import Operator


def leaves(operator: Operator) -> tuple[Tensor, ...]:
    return tuple(x.clone().requires_grad_() for x in operator.inputs)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def jacobian(operator: Operator) -> tuple[Tensor, ...]:
    return torch.autograd.functional.jacobian(operator.fn, operator.inputs)


def gradcheck(operator: Operator) -> None:
    torch.autograd.gradcheck(operator.fn, leaves(operator), check_batched_grad=True)


def gradgradcheck(operator: Operator) -> None:
    torch.autograd.gradgradcheck(operator.fn, leaves(operator), atol=1e-4)


def forward_mode(operator: Operator) -> None:
    torch.autograd.gradcheck(operator.fn, leaves(operator), check_forward_ad=True, check_backward_ad=False)


def vmap(operator: Operator) -> None:
    if not any(operator.batched):  # an operator without a batch axis gets one
        stacked = tuple(torch.stack([x, 0.7 * x]) for x in operator.inputs)
        rows = [operator.fn(*(x[i] for x in stacked)) for i in range(2)]
        close(torch.func.vmap(operator.fn)(*stacked), torch.stack(rows))
        return
    in_dims = tuple(0 if batched else None for batched in operator.batched)
    close(torch.func.vmap(operator.fn, in_dims)(*operator.inputs), operator.fn(*operator.inputs))


def jacrev(operator: Operator) -> None:
    places = tuple(range(len(operator.inputs)))
    for got, expected in zip(torch.func.jacrev(operator.fn, places)(*operator.inputs), jacobian(operator), strict=True):
        close(got, expected)


def jacfwd(operator: Operator) -> None:
    places = tuple(range(len(operator.inputs)))
    for got, expected in zip(torch.func.jacfwd(operator.fn, places)(*operator.inputs), jacobian(operator), strict=True):
        close(got, expected)


def compile_fullgraph(operator: Operator) -> None:
    """Forward and backward in one graph each."""
    torch.compiler.reset()
    fn = operator.traced or operator.fn
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager", dynamic=False)
    inputs, twins = leaves(operator), leaves(operator)
    got, expected = compiled(*inputs), fn(*twins)
    close(got.detach(), expected.detach())
    weight = torch.linspace(0.5, 1.5, expected.numel(), dtype=expected.dtype).view(expected.shape)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    for x, y in zip(inputs, twins, strict=True):
        close(torch.zeros_like(x) if x.grad is None else x.grad, torch.zeros_like(y) if y.grad is None else y.grad)


def export(operator: Operator) -> None:
    fn = operator.traced or operator.fn

    class Wrapped(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return fn(*inputs)

    program = torch.export.export(Wrapped(), operator.inputs)
    close(program.module()(*operator.inputs), fn(*operator.inputs))


TRANSFORMS: dict[str, Callable[[Operator], None]] = {
    "gradcheck": gradcheck,
    "gradgradcheck": gradgradcheck,
    "forward mode": forward_mode,
    "vmap": vmap,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "compile fullgraph": compile_fullgraph,
    "export": export,
}
