"""Would the graph do the same on fewer channels? Its moves and its arithmetic on shapes, run again on what is left."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten

from . import operations as ops
from .channels import Channels
from .flow import Flow, holds_tensors
from .moves import operands
from .rewriting import Changes

Arguments = tuple[tuple, dict]
RESHAPES = {"view", "reshape"}


def replay(flow: Flow, alive: Tensor, may_repair: bool) -> tuple[bool, Changes]:
    """Whether all goes through, and the arguments to change for it.

    Sizes written in the code (`x.view(-1, 800)`) are repaired if that may be; where a graph would do something else on fewer
    channels, the channels that reach the place are kept, and the answer is False.
    """
    repairs: Changes = {}
    full: dict[fx.Node, object] = {}
    small: dict[fx.Node, object] = {}
    right = True

    def same(n: fx.Node) -> bool:
        return holds_tensors(full[n]) or full[n] == small[n]

    for node in flow.traced.graph.nodes:
        meta = flow.traced.metas[node]
        if holds_tensors(meta):
            full[node] = meta
            small[node] = _pruned(meta, flow.values[node], alive)
            if node in flow.moves:
                fits, repair = _move(flow, node, small, alive, may_repair)
                if repair is not None:
                    repairs[node] = repair
            else:
                fits = all(same(n) for n in node.all_input_nodes)
        else:
            full[node], small[node] = _shape_read(flow, node, full, meta), _shape_read(flow, node, small, meta)
            # What ends here (an assertion, the output) must not see a difference; what goes on is looked at where it ends.
            fits = bool(node.users) or all(same(n) for n in (node, *node.all_input_nodes))
        if not fits:
            right = False
            flow.keep(*_origins(flow, node))
    return right, repairs


def _shape_read(flow: Flow, node: fx.Node, env: dict[fx.Node, object], meta: object) -> object:
    """A size, or what is computed from sizes, on the tensors of `env`; as it was where it depends on their entries."""
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return meta
    if flow.tensors(node) and ops.name_of(node) not in ops.SHAPE_READS:
        return meta
    try:
        return ops.run(node, flow.traced, env.__getitem__)
    except Exception:  # an assertion on shapes, say: no number that can be the same
        return NotImplemented


def _move(
    flow: Flow, node: fx.Node, small: dict[fx.Node, object], alive: Tensor, may_repair: bool
) -> tuple[bool, Arguments | None]:
    """Whether a move of fewer channels gives fewer channels of the move, and what to change in it so that it does."""
    whole, cut, start = {}, {}, 0
    for n, shape in (operands(flow, node) or {}).items():
        whole[n] = torch.arange(start, start + math.prod(shape)).view(shape)
        cut[n] = _pruned(whole[n], flow.values[n], alive)
        start += math.prod(shape)
    before = ops.run(node, flow.traced, lambda n: whole.get(n, flow.traced.metas[n]))
    wanted = _pruned(before, flow.values[node], alive)

    def gives(arguments: Arguments | None) -> bool:
        try:
            found = ops.run(node, flow.traced, lambda n: cut.get(n, small[n]), arguments)
        except Exception:  # the sizes do not fit
            return False
        (one, tree), (other, shaped) = tree_flatten(found), tree_flatten(wanted)
        return tree == shaped and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    if gives(None):
        return True, None
    if not may_repair or ops.name_of(node) not in RESHAPES or node.kwargs:
        return False, None
    assert isinstance(wanted, Tensor)
    changed = resized(node, wanted.shape)
    return (True, changed) if gives(changed) else (False, None)


def resized(node: fx.Node, shape: torch.Size) -> Arguments:
    """The arguments of a view or reshape that gives this shape: its numbers change, -1 and what is computed stay."""
    args: Any = node.args
    packed = not isinstance(args[1], (int, fx.Node))
    sizes = [
        new if isinstance(size, int) and size not in (-1, new) else size
        for size, new in zip(args[1] if packed else args[1:], shape, strict=True)
    ]
    return ((args[0], sizes) if packed else (args[0], *sizes)), {}


def _pruned(tensors: Any, value: object, alive: Tensor) -> Any:
    """Tensors with the channels that are alive."""
    if isinstance(value, Channels):
        assert isinstance(tensors, Tensor)
        return tensors.index_select(value.axis, alive[value.slots].nonzero().flatten().to(tensors.device))
    if isinstance(value, (tuple, list)):
        return type(value)(_pruned(t, v, alive) for t, v in zip(tensors, value, strict=True))
    return tensors


def _origins(flow: Flow, node: fx.Node) -> list[fx.Node]:
    """The nodes with tensors that a node depends on, itself among them, through sizes and numbers too."""
    todo, found = list(node.all_input_nodes), [node]
    while todo:
        n = todo.pop()
        if holds_tensors(flow.traced.metas[n]):
            found.append(n)
        else:
            todo += n.all_input_nodes
    return found
