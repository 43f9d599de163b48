"""Changes to a block that are taken back unless the block still answers as before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ..evaluation import Example, evaluating

Inputs = tuple[tuple, dict[str, Any]]

# How far outputs of equal functions may lie apart, relative to the largest: sums run in another order.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
# Whether a block has been understood: one that has not is off by far more than a device that multiplies in TF32.
ROUGHLY = 100.0
_NOTHING = object()


class Edits:
    """Attributes set, with a way back."""

    def __init__(self) -> None:
        self.log: list[tuple[nn.Module, str, object]] = []

    def set(self, owner: nn.Module, name: str, value: object) -> None:
        self.log.append((owner, name, getattr(owner, name, _NOTHING)))
        setattr(owner, name, value)

    def buffer(self, owner: nn.Module, name: str, value: Tensor) -> None:
        self.log.append((owner, name, _NOTHING))
        owner.register_buffer(name, value)

    def undo(self) -> None:
        for owner, name, old in reversed(self.log):
            if old is _NOTHING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
        self.log.clear()


@contextmanager
def _plain_paths() -> Iterator[None]:
    """Without torch's fused attention path, which calls no submodule and makes nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def record(model: nn.Module, blocks: Iterable[nn.Module], example_input: Example) -> dict[nn.Module, Inputs]:
    """What each block is called with, at its first call in model(example_input). A block that is not called has no entry."""
    calls: dict[nn.Module, Inputs] = {}

    def keep(block: nn.Module, positional: tuple, named: dict[str, Any]) -> None:
        if block not in calls:
            calls[block] = fresh((positional, named))  # a cache among them fills up during the call

    hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in dict.fromkeys(blocks)]
    try:
        with torch.no_grad(), evaluating(model), _plain_paths():
            positional, named = fresh(as_inputs(example_input))
            model(*positional, **named)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def attempt(block: nn.Module, given: Inputs, change: Callable[[Edits], None]) -> Edits | None:
    """Make the change and return the way back; None, and all as it was, where the block then answers otherwise or not at all.

    Only the first tensor that it returns has to be the same: others (weights of attention, a cache) may tell of the inside.
    """
    asked = questions(given)
    before = [first(answers(block, question)) for question in asked]
    edits = Edits()
    try:
        change(edits)
    except (RuntimeError, IndexError):
        edits.undo()
        return None
    if all(
        agree(one, first(answers(block, question)), slack=ROUGHLY) for one, question in zip(before, asked, strict=True)
    ):
        return edits
    edits.undo()
    return None


def as_inputs(example_input: Example) -> Inputs:
    """An example as positional and named arguments."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


def questions(given: Inputs) -> list[Inputs]:
    """The inputs, and the same with random numbers in the place of the first tensor, if that is a floating one."""
    lead = next((leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)), None)
    if lead is None or not lead.is_floating_point():
        return [given]
    drawn = torch.randn(lead.shape, generator=torch.Generator().manual_seed(0)).to(lead)
    return [given, tree_map(lambda leaf: drawn if leaf is lead else leaf, given)]


def answers(block: nn.Module, question: Inputs) -> list[Tensor] | None:
    """Every tensor of the output; None where the block raises."""
    positional, named = fresh(question)
    with torch.no_grad(), evaluating(block), _plain_paths():
        try:
            output = block(*positional, **named)
        except Exception:  # whatever a block of unknown ways says, it does not fit
            return None
    return tensors(output)


def fresh(inputs: Any) -> Any:
    """A copy of any structure of inputs that a model may write into; what is one tensor in it stays one."""
    made: dict[int, Tensor] = {}

    def plain(x: Tensor) -> Tensor:
        return x if x.grad_fn is None else made.setdefault(id(x), x.detach())

    return copy.deepcopy(tree_map_only(Tensor, plain, inputs))


def tensors(output: object) -> list[Tensor]:
    """Every tensor in an output, in its dataclasses too."""
    found: list[Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, f.name) for f in fields(leaf)])
    return found


def first(found: list[Tensor] | None) -> list[Tensor] | None:
    return found[:1] if found else None


def agree(one: list[Tensor] | None, other: list[Tensor] | None, *, slack: float = 1.0) -> bool:
    """Two answers, equal but for rounding (so many times what is usual); no answer agrees with nothing."""
    if one is None or other is None or len(one) != len(other):
        return False
    return all(close(a, b, slack=slack) for a, b in zip(one, other, strict=True))


def close(one: Tensor, other: Tensor, *, slack: float = 1.0) -> bool:
    """Equal but for rounding; NaN in the same places."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    finite = one[one.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    atol = min(slack * CLOSE.get(one.dtype.to_real(), 0.0), 0.1) * scale
    return torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True)
