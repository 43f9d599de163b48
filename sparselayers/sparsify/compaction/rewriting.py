"""A module as its own graph, for code that has sizes written in it: `x.view(-1, 800)`."""

from __future__ import annotations

import copy

from torch import fx, nn
from torch.fx.node import map_aggregate

from .trace import Traced

Changes = dict[fx.Node, tuple[tuple, dict]]  # node -> other arguments for it

MODE = object()  # stands for `self.training` among arguments


class _Differs(Exception):
    """The graph in training is another one."""


def modes(traced: Traced, training: fx.Graph | None) -> Changes | None:
    """The operations that depend on the module's mode, with MODE for it among their arguments (a dropout's `training`).

    None where training differs from evaluation by more than that, so that one graph cannot stand for both.
    """
    if training is None or len(training.nodes) != len(traced.graph.nodes):
        return None
    pairs = list(zip(traced.graph.nodes, training.nodes, strict=True))
    place = {node: i for i, pair in enumerate(pairs) for node in pair}
    found: Changes = {}
    try:
        for node, other in pairs:
            if (node.op, node.target) != (other.op, other.target):
                return None
            merged = _merged((node.args, node.kwargs), (other.args, other.kwargs), place)
            if merged != (node.args, node.kwargs):
                found[node] = merged
    except _Differs:
        return None
    return found


def _merged(one, other, place: dict[fx.Node, int]):
    """The arguments in evaluation, with MODE where it is False and training has True."""
    if isinstance(one, fx.Node) and isinstance(other, fx.Node) and place[one] == place[other]:
        return one
    if isinstance(one, (tuple, list)) and type(one) is type(other) and len(one) == len(other):
        return type(one)(_merged(a, b, place) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and one.keys() == other.keys():
        return {key: _merged(one[key], other[key], place) for key in one}
    if isinstance(one, slice) and isinstance(other, slice):
        return slice(*(_merged(getattr(one, f), getattr(other, f), place) for f in ("start", "stop", "step")))
    if one is False and other is True:
        return MODE
    if isinstance(one, fx.Node) or isinstance(other, fx.Node) or one != other:
        raise _Differs
    return one


def rewritten(traced: Traced, changes: Changes) -> nn.Module:
    """The module as a GraphModule with other arguments in places; its layers and tensors keep their names."""
    module, graph = traced.module, traced.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        mode = graph.create_node("get_attr", "training")
    for node, changed in changes.items():
        args, kwargs = map_aggregate(changed, lambda a: mode if a is MODE else a)
        node.args, node.kwargs = args, kwargs
    if not mode.users:
        graph.erase_node(mode)
    for node in graph.nodes:
        node.type = None  # annotations that are strings stand in the way of pickle
    vars(module).update(traced.constants)
    small = fx.GraphModule(module, graph, class_name=type(module).__name__)
    for name in traced.constants:
        delattr(module, name)
    # All that the model holds, in its order, not only what this graph uses: the keys stay.
    for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(small, held, copy.copy(getattr(module, held)))
    for name, constant in traced.constants.items():
        small.register_buffer(name, constant, persistent=False)
    return small
