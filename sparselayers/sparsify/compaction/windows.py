"""Operations on a channel at a time: pooling, padding, interpolation, means over places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from . import operations as ops
from .channels import Channels

if TYPE_CHECKING:
    from .flow import Flow, Value


def window(flow: Flow, node: fx.Node) -> Value:
    """Channels in front of the last axes, over which it works, pass; constants that come out as one number stay known."""
    axes = ops.window_axes(node, flow.traced)
    source = node.args[0] if node.args else None
    if axes is None or not isinstance(source, fx.Node) or flow.tensors(node) != [source]:
        return NotImplemented
    value, before, after = flow.values[source], flow.traced.shape(source), flow.traced.shape(node)
    if not isinstance(value, Channels):
        return None
    if before is None or after is None or value.axis >= len(before) - axes:
        return NotImplemented
    if before[: len(before) - axes] != after[: len(before) - axes] or len(before) != len(after):
        return NotImplemented
    # The operation itself, on one sample of constants, says which of them borders and weights leave as they are.
    wide = [1] * value.axis + [len(value.slots)] + [1] * (len(before) - 1 - value.axis)
    sample = value.const.view(wide).expand(*[1] * value.axis, *before[value.axis :]).clone()
    try:
        result = ops.run(node, flow.traced, lambda n: sample if n is source else flow.traced.metas[n])
    except Exception:  # a dtype that the operation does not take on the CPU
        result = None
    if not isinstance(result, Tensor):
        return value.learned(torch.zeros_like(value.known), value.const)
    places = result.movedim(value.axis, 0).reshape(len(value.slots), -1).cpu()
    low, high = places.amin(1), places.amax(1)
    same = high - low <= 8 * torch.finfo(high.dtype).eps * high.abs()  # an average of equal numbers is rounded
    return value.learned(value.known & same, high)


def mean(flow: Flow, node: fx.Node) -> Value:
    """A mean or an extreme over axes other than that of the channels."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return NotImplemented
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    value, shape = flow.values[source], flow.traced.shape(source)
    if not isinstance(value, Channels):
        return None
    dims = [dims] if isinstance(dims, int) else dims
    if shape is None or not isinstance(dims, (list, tuple)) or not all(isinstance(dim, int) for dim in dims):
        return NotImplemented
    gone = {dim % len(shape) for dim in dims}
    if not gone or value.axis in gone or not isinstance(keepdim, bool) or set(node.kwargs) - {"dim", "keepdim"}:
        return NotImplemented
    axis = value.axis if keepdim else value.axis - sum(dim < value.axis for dim in gone)
    return value.take(torch.arange(len(value.slots)), axis)
