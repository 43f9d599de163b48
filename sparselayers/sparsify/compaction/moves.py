"""Operations that move entries: where the channels went is seen by moving their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from . import operations as ops
from .channels import Channels

if TYPE_CHECKING:
    from .flow import Flow, Value


def operands(flow: Flow, node: fx.Node) -> dict[fx.Node, torch.Size] | None:
    """The tensors that a move takes, as its first argument or in a list of them; None where it takes others too."""
    first = node.args[0] if node.args else node.kwargs.get("tensors", node.kwargs.get("input"))
    listed = first if isinstance(first, (list, tuple)) else [first]
    found = {n: shape for n in listed if isinstance(n, fx.Node) and (shape := flow.traced.shape(n)) is not None}
    odd = any(isinstance(arg, torch.dtype) for arg in (*node.args, *node.kwargs.values()))
    return None if odd or found.keys() != set(flow.tensors(node)) else found


def moved(flow: Flow, node: fx.Node) -> Value:
    """The channels of what comes out; they stay where no one axis has them."""
    shapes = operands(flow, node)
    if shapes is None:
        return NotImplemented
    places = {(v.axis, len(shape)) for n, shape in shapes.items() if isinstance(v := flow.values[n], Channels)}
    if not places:
        return None
    axis, ndim = places.pop()
    if any(len(shape) != ndim for shape in shapes.values()):
        return NotImplemented
    flow.moves.append(node)
    parts = [flow.channels(n, axis) for n in shapes]
    every = Channels(axis, *(torch.cat([getattr(part, f) for part in parts]) for f in ("slots", "known", "const")))
    labels = _labelled(flow, node, shapes, every, shared=False)
    if (
        isinstance(labels, Tensor)
        and _axis(labels) is None
        and len({len(part.slots) for part in parts}) == 1 < len(parts)
    ):
        # Joined along another axis (places): the channels of all parts, one by one, are those of the result.
        every = _united(flow, parts)
        labels = _labelled(flow, node, shapes, every, shared=True)
    return tree_map_only(Tensor, lambda t: _located(flow, every, t), labels)


def _labelled(flow: Flow, node: fx.Node, shapes: dict[fx.Node, torch.Size], every: Channels, shared: bool) -> object:
    """The move of tensors whose entries number their channels, through all tensors or from 0 in each (`shared`)."""
    labels, start = {}, 0
    for n, shape in shapes.items():
        size = shape[every.axis]
        numbers = torch.arange(start, start + size).view(-1, *[1] * (len(shape) - 1 - every.axis))
        labels[n] = numbers.expand(shape).contiguous()
        start = 0 if shared else start + size
    return ops.run(node, flow.traced, lambda n: labels.get(n, flow.traced.metas[n]))


def _united(flow: Flow, parts: list[Channels]) -> Channels:
    first, *others = parts
    known = first.known
    for other in others:
        flow.slots.unite(first.slots, other.slots)
        known = known & other.known & (first.const == other.const)
    return first.learned(known, first.const)


def _axis(labels: Tensor) -> int | None:
    """The axis on which alone the numbers depend."""
    for axis, size in enumerate(labels.shape):
        lines = labels.movedim(axis, 0).reshape(size, -1) if labels.numel() else labels.new_zeros(0)
        if size > 1 and len(lines) and bool((lines == lines[:, :1]).all()):
            return axis
    return None


def _located(flow: Flow, every: Channels, labels: Tensor) -> Channels | None:
    axis = _axis(labels)
    if axis is None:
        flow.slots.keep(every.slots[labels.unique()])
        return None
    return every.take(labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0], axis)
