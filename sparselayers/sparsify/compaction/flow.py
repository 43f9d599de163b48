"""What is known of every value of a graph, channel by channel, in the order of the graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from . import layers
from . import operations as ops
from .channels import Channels, Slots
from .layers import Entries, Mixer
from .moves import moved
from .pointwise import pointwise
from .selected import index_of
from .trace import Traced
from .windows import mean, window

Value = Any  # Channels; None where nothing is known; for an operation with several results a tuple of them


class Flow:
    """The channels of every value, and the tensors to cut with them.

    What is unknown is safe: an operation of no known kind keeps all channels that reach it.

    Attributes:
        values: node -> its channels.
        slots: which channels stand together, and which cannot go.
        mixers: the layers that make channels of others, in order.
        entries: tensors that are cut with the channels of a value.
        moves: the nodes that move entries.
    """

    def __init__(self, traced: Traced, fixed: set[int]) -> None:
        """`fixed`: ids of modules of which nothing is to be known, and whose weights stay as they are."""
        self.traced = traced
        self.fixed = fixed
        self.values: dict[fx.Node, Value] = {}
        self.slots = Slots()
        self.mixers: list[Mixer] = []
        self.entries: list[Entries] = []
        self.moves: list[fx.Node] = []
        self._memory: dict[fx.Node, fx.Node] = {}  # node -> the first node whose memory its result may share
        for node in traced.graph.nodes:
            self.values[node] = self._value(node)

    def channels(self, node: fx.Node, axis: int) -> Channels:
        """The channels of a tensor along an axis; where they are not known, new ones that stay."""
        value, shape, like = self.values[node], self.traced.shape(node), self.traced.metas[node]
        assert shape is not None
        assert isinstance(like, Tensor)
        if isinstance(value, Channels) and value.axis == axis:
            return value
        self.keep(node)
        slots = self.slots.fresh(shape[axis])
        self.slots.keep(slots)
        nothing = torch.zeros(len(slots), dtype=like.dtype)
        return Channels(axis, slots, nothing.bool(), nothing)

    def keep(self, *nodes: fx.Node) -> None:
        """No channel of these values can go."""
        for node in nodes:
            for value in tree_leaves(self.values.get(node)):
                if isinstance(value, Channels):
                    self.slots.keep(value.slots)

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that a node takes tensors from."""
        return [n for n in node.all_input_nodes if holds_tensors(self.traced.metas[n])]

    def _value(self, node: fx.Node) -> Value:
        sources = self.tensors(node)
        if node.op == "output":
            self.keep(*sources)
            return None
        if not holds_tensors(self.traced.metas[node]):
            if ops.name_of(node) not in ops.SHAPE_READS:
                self.keep(*sources)
            return None
        if node.op in ("placeholder", "get_attr"):
            self._memory[node] = node
            return None
        value = self._layer(node) if node.op == "call_module" else self._operation(node)
        if value is NotImplemented:
            self.keep(*sources)
            value = None
        return self._remembered(node, sources, value)

    def _layer(self, node: fx.Node) -> Value:
        layer: Any = self.traced.layer(node)
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if id(layer) in self.fixed or not isinstance(source, fx.Node):
            return NotImplemented
        shape = self.traced.shape(source)
        if shape is None:
            return NotImplemented
        kind = type(layer)
        if layers.is_mixer(layer):
            return self._mixed(node, source, layer, len(shape))
        if layers.is_depthwise(layer):
            into = self.channels(source, layers.channel_axis(layer, len(shape)))
            out = layers.depthwise(layer, into)
            self.entries.append(Entries(layer, ("weight", "bias"), out.slots, counts=("out_channels",)))
            self.entries.append(Entries(layer, (), into.slots, counts=("in_channels", "groups")))
            return out
        if layers.is_per_channel(layer):
            into = self.channels(source, layers.entry_axis(layer, len(shape)))
            names, counts = layers.entry_names(layer)
            self.entries.append(Entries(layer, names, into.slots, counts=counts))
            return layers.scaled(layer, into, len(shape))
        if kind in ops.POINTWISE_LAYERS or kind is nn.PReLU:
            return pointwise(self, node)
        if kind in ops.MOVE_LAYERS:
            return moved(self, node)
        return window(self, node)

    def _mixed(self, node: fx.Node, source: fx.Node, layer: Any, ndim: int) -> Channels:
        axis = layers.channel_axis(layer, ndim)
        upstream = self.channels(source, axis)
        index = index_of(layer, len(upstream.slots))
        into = upstream.take(index)
        shape = self.traced.shape(node)
        assert shape is not None
        out, foldable = layers.mixed(layer, into, self.slots.fresh(shape[axis]), axis)
        self.mixers.append(Mixer(layer, upstream, index, into, out, foldable, shape))
        return out

    def _operation(self, node: fx.Node) -> Value:
        first: Any = node.args[0] if node.args else None
        if node.target is operator.getitem and isinstance(first, fx.Node) and self.traced.shape(first) is None:
            several = self.values[first]  # one of several results
            index: Any = node.args[1]
            return several[index] if isinstance(several, (tuple, list)) else None
        name = ops.name_of(node)
        if name is None or "out" in node.kwargs or ops.is_random(node, name):
            return NotImplemented
        if name in ops.POINTWISE:
            return pointwise(self, node)
        if name in ops.MOVES:
            return moved(self, node)
        if name in ops.MEANS:
            return mean(self, node)
        return window(self, node)

    def _remembered(self, node: fx.Node, sources: list[fx.Node], value: Value) -> Value:
        """The value, less its constants where an operation in place may have changed what others read too."""
        writes = ops.in_place(node, self.traced)
        fresh = not sources or (ops.makes_anew(node, self.traced) and not writes)
        self._memory[node] = node if fresh else self._memory.get(sources[0], sources[0])
        if not writes:
            return value
        written = {self._memory[node], *(self._memory.get(n, n) for n in sources if "out" in node.kwargs)}
        shared = [n for n, owner in self._memory.items() if owner in written and n is not node]
        if all(len(n.users) == 1 for n in shared) and self._memory[node].op not in ("placeholder", "get_attr"):
            return value
        for n in shared:
            if isinstance(known := self.values[n], Channels):
                self.values[n] = known.learned(torch.zeros_like(known.known), known.const)
        return value.learned(torch.zeros_like(value.known), value.const) if isinstance(value, Channels) else value


def holds_tensors(meta: object) -> bool:
    """Whether a result is a tensor or has one among its parts."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(meta))
