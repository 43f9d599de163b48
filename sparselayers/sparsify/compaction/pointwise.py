"""Operations entry by entry, of one tensor or of several that broadcast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from . import operations as ops
from .channels import Channels
from .layers import Entries

if TYPE_CHECKING:
    from .flow import Flow, Value


def pointwise(flow: Flow, node: fx.Node) -> Value:
    """Channels whose operands all have them along one axis; the slots of the operands become one."""
    shape, sources = flow.traced.shape(node), flow.tensors(node)
    shapes = {n: s for n in sources if (s := flow.traced.shape(n)) is not None}
    if shape is None or len(shapes) < len(sources):
        return NotImplemented
    backs = {v.axis - len(shapes[n]) for n in sources if isinstance(v := flow.values[n], Channels)}
    if not backs:
        return None
    back = backs.pop()  # the axis, counted from the end, where broadcasting aligns
    if backs or any(len(s) > len(shape) for s in shapes.values()):
        return NotImplemented
    size, whole, views = shape[back], [], {}
    known, zero = torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for n in sources:
        one, spread = _operand(flow, n, len(shapes[n]) + back, size)
        if not spread:
            whole.append(one)
        views[n] = _along(one.const[:1] if spread else one.const, len(shapes[n]), back)
        known &= one.known
        zero |= one.known & (one.const == 0)
    if not whole:
        return NotImplemented
    for other in whole[1:]:
        flow.slots.unite(whole[0].slots, other.slots)
    like = flow.traced.metas[node]
    assert isinstance(like, Tensor)
    const = torch.zeros(size, dtype=like.dtype)
    if known.any():
        result = _tried(flow, node, views)
        if result is None or result.numel() not in (1, size):
            known = torch.zeros_like(known)
        else:
            const = result.flatten().cpu().expand(size).to(like.dtype)
    if any(ops.computes(flow.traced.metas[n]) for n in node.all_input_nodes if n not in shapes):
        # A number that is another one for other inputs: it leaves only a 0 as it is, that it multiplies or divides.
        divides = ops.name_of(node) in ops.QUOTIENTS and node.args[0] in shapes
        known &= (const == 0) & (divides or ops.name_of(node) in ops.PRODUCTS)
    if ops.name_of(node) in ops.PRODUCTS:
        known, const = known | zero, torch.where(zero, 0, const)
    return Channels(len(shape) + back, whole[0].slots, known, const).learned(known, const)


def _operand(flow: Flow, node: fx.Node, axis: int, size: int) -> tuple[Channels, bool]:
    """An operand as `size` channels, and whether one entry of it meets all of them."""
    value, shape = flow.values[node], flow.traced.shape(node)
    assert shape is not None
    spread = axis < 0 or shape[axis] != size
    if node.op == "get_attr":
        return _attribute(flow, node, axis, size, spread), spread
    if not spread:
        return flow.channels(node, axis), False
    flow.keep(node)
    if isinstance(value, Channels) and value.axis == axis:
        return value.take(torch.zeros(size, dtype=torch.long)), True
    nothing = torch.zeros(size)
    return Channels(axis, nothing.long(), nothing.bool(), nothing), True


def _attribute(flow: Flow, node: fx.Node, axis: int, size: int, spread: bool) -> Channels:
    """A tensor of the model itself: known where it has one entry a channel, and cut with the channels where it can be."""
    path, _, name = str(node.target).rpartition(".")
    made = flow.traced.constants.get(str(node.target))
    owner = flow.traced.module.get_submodule(path) if made is None else None
    tensor = (getattr(owner, name) if made is None else made).detach().cpu()
    plain = tensor.numel() == (1 if spread else size)
    const = tensor.flatten().expand(size) if plain else torch.zeros(size, dtype=tensor.dtype)
    known = torch.full((size,), plain)
    slots = flow.slots.fresh(size)
    graph = flow.traced.graph
    uses = sum(len(n.users) for n in graph.nodes if n.op == "get_attr" and n.target == node.target)
    called = {id(flow.traced.layer(n)) for n in graph.nodes if n.op == "call_module"}
    if spread or owner is None or uses > 1 or id(owner) in flow.fixed | called or not _registered(owner, name):
        flow.slots.keep(slots)
    else:
        flow.entries.append(Entries(owner, (name,), slots, axis))
    return Channels(axis, slots, known, const).learned(known, const)


def _registered(owner: nn.Module, name: str) -> bool:
    return name in owner._parameters or name in owner._buffers


def _along(const: Tensor, ndim: int, back: int) -> Tensor:
    """The constants along one axis of `ndim`; a copy, for what works in place."""
    shape = [1] * ndim
    if ndim + back >= 0:
        shape[back] = len(const)
    return const.clone().view(shape)


def _tried(flow: Flow, node: fx.Node, views: dict[fx.Node, Tensor]) -> Tensor | None:
    """The operation on constants; None where it does not take them (a device, a dtype)."""
    try:
        result = ops.run(node, flow.traced, lambda n: views.get(n, flow.traced.metas[n]))
    except Exception:  # whatever it is, the channels are then not known
        return None
    return result if isinstance(result, Tensor) else None
