"""Every operator through every transform."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import sparselayers as sl
import sparselayers.functional as F

from .properties import TRANSFORMS
from .registry import OPERATORS, Operator


@pytest.mark.parametrize("check", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_transform(operator: Operator, check: Callable[[Operator], None]) -> None:
    check(operator)


HANDFUL = {
    "sparsemax": lambda v: F.sparsemax(v),
    "entmax15": lambda v: F.entmax15(v),
    "exclusive": lambda v: F.exclusive_threshold(v, 0.3),
    "group lasso": lambda v: sl.SparseGroup().prox(v, 0.3),
    "fista": lambda v: F.fista(v, torch.eye(7, dtype=v.dtype), 0.3, depth=3, schedule=sl.Homotopy()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HANDFUL)
def test_inductor(name: str) -> None:
    """The real compiler, forward and backward, with a second batch size."""
    torch.compiler.reset()
    compiled = torch.compile(HANDFUL[name], fullgraph=True)
    for batch in (3, 5):
        v = torch.randn(batch, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
        got, expected = compiled(v), HANDFUL[name](v)
        torch.testing.assert_close(got, expected)
        weight = torch.linspace(1, 2, v.numel()).view(v.shape)
        (from_compiled,) = torch.autograd.grad((got * weight).sum(), v)
        torch.testing.assert_close(from_compiled, torch.autograd.grad((expected * weight).sum(), v)[0])


@pytest.mark.parametrize("f", [F.sparsemax, F.entmax15])
def test_export_with_dynamic_shapes(f) -> None:
    class Wrapped(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return f(z)

    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Wrapped(), (torch.randn(4, 6),), dynamic_shapes=dynamic)
    z = torch.randn(9, 300)
    torch.testing.assert_close(program.module()(z), f(z))


@pytest.mark.parametrize("f", [F.sparsemax, F.entmax15])
def test_compiled_transforms(f) -> None:
    torch.compiler.reset()
    z = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.compile(torch.func.vmap(f), fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(rows, f(z))
    jacobian = torch.compile(torch.func.jacrev(f), fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(jacobian, torch.func.jacrev(f)(z))
