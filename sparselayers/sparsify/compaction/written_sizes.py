"""Sizes written in the code of a model, as they are after its layers were resized."""

from __future__ import annotations

import torch
from torch import fx, nn

from ..evaluation import Example, check_example, evaluating
from . import operations as ops
from .channels import Channels
from .flow import Flow
from .replay import RESHAPES, resized
from .rewriting import Changes, modes, rewritten
from .trace import Untraceable, in_training, positional, trace
from .trial import as_inputs


class WrittenSizes:
    """What a model does before its layers are resized, to tell afterwards which sizes in its code no longer fit."""

    def __init__(self, model: nn.Module, example_input: Example) -> None:
        check_example(example_input)
        self._model = model
        self._call = as_inputs(example_input)
        self._flow: Flow | None = None
        with evaluating(model):
            try:
                traced = trace(model, self._call)
            except Untraceable:
                return
            if not traced.specialised:
                self._flow = Flow(traced, set())

    def corrected(self) -> nn.Module:
        """The model, as a GraphModule where its code has such sizes."""
        if self._flow is None:
            return self._model
        traced = self._flow.traced
        with evaluating(self._model), torch.no_grad():
            views = _Views(self._flow)
            views.run(*positional(self._model, self._call))
            by_mode = modes(traced, in_training(traced))
        if not views.changes or by_mode is None:
            return self._model
        small = rewritten(traced, views.changes | by_mode)
        small.training = self._model.training
        return small


class _Views(fx.Interpreter):
    """Runs the graph on the layers as they are now, with the sizes of views corrected on the way."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.traced.module, graph=flow.traced.graph)
        self.flow = flow
        self.changes: Changes = {}

    def fetch_attr(self, target: str) -> object:
        constant = self.flow.traced.constants.get(target)
        return super().fetch_attr(target) if constant is None else constant

    def run_node(self, n: fx.Node) -> object:
        value, shape = self.flow.values[n], self.flow.traced.shape(n)
        if ops.name_of(n) not in RESHAPES or n.kwargs or not isinstance(value, Channels) or shape is None:
            return super().run_node(n)
        source = self.env[n.all_input_nodes[0]]
        sizes = list(shape)
        sizes[value.axis] = shape[value.axis] * source.numel() // max(shape.numel(), 1)
        changed = resized(n, torch.Size(sizes))
        if changed != (n.args, n.kwargs):
            self.changes[n] = changed
        return ops.run(n, self.flow.traced, self.env.__getitem__, changed)
