"""Operations on a channel at a time: pooling, padding, interpolation, means over places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

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
    # The operation itself, on samples of constants, says which of them borders and weights leave as they are: on one of the
    # example's size, and on a larger one, as a border that is all there is in a small one is not the same everywhere.
    here = list(before[len(before) - axes :])
    found = [_at(flow, node, source, value, here, lambda x: x)]
    found.append(_at(flow, node, source, value, [2 * size + 1 for size in here], ops.otherwise))
    nothing = value.learned(torch.zeros_like(value.known), value.const)
    if any(places is None or not places.shape[1] for places in found):
        return nothing
    places = torch.cat([places for places in found if places is not None], 1)
    const = places[:, 0]
    spread = (places - places[:, :1]).abs().amax(1)
    same = spread <= 8 * torch.finfo(const.dtype).eps * const.abs()  # an average of equal numbers is rounded
    return value.learned(value.known & same, const)


def _at(
    flow: Flow, node: fx.Node, source: fx.Node, value: Channels, sizes: list[int], number: Callable[[object], object]
) -> Tensor | None:
    """(channels, places): the operation on one sample of constants of these sizes; None where it does not take that."""
    shape = flow.traced.shape(source)
    assert shape is not None
    inner = shape[value.axis : len(shape) - len(sizes)]
    wide = [1] * value.axis + [len(value.slots)] + [1] * (len(shape) - 1 - value.axis)
    sample = value.const.view(wide).expand(*[1] * value.axis, *inner, *sizes).clone()
    try:
        result = ops.run(node, flow.traced, lambda n: sample if n is source else tree_map(number, flow.traced.metas[n]))
    except Exception:  # sizes that do not fit, a dtype that the operation does not take on the CPU
        return None
    if isinstance(result, Tensor) and (result.is_floating_point() or result.is_complex()):
        return result.movedim(value.axis, 0).reshape(len(value.slots), -1).cpu()
    return None


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
