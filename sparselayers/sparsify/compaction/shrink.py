"""A module shrunk in place: as one graph where torch.fx can follow it, else its children one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..evaluation import fresh
from .cutting import cut
from .flow import Flow
from .liveness import live
from .replay import replay
from .rewriting import modes, rewritten
from .trace import Traced, Untraceable, in_training, readers, trace
from .trial import Inputs, agree, answers

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Shrinker:
    """Shrinks modules of one model.

    Attributes:
        failures: why torch.fx could not follow a forward, the outermost first; empty where it could.
        closed: whether it could not follow the model's own.
    """

    def __init__(self, model: nn.Module, call: Inputs) -> None:
        self.failures: list[str] = []
        self.closed = False
        self._model = model
        self._call = call
        self._fixed = fixed_modules(model)
        self._calls: dict[int, list[Inputs]] | None = None

    def shrunk(self, module: nn.Module, call: Inputs) -> nn.Module:
        """The module with fewer channels inside, its interface as it was; in place but where sizes in its code change."""
        try:
            traced = trace(module, call)
        except Untraceable as error:
            self.failures.append(f"{type(module).__name__}: {error}")
            self.closed |= module is self._model and not type(module).__module__.startswith("torch.nn.modules.")
            self._shrink_children(module)
            return module
        for path in traced.closed:
            self._replace(module, path)
        return self._graph(traced, call)

    def _graph(self, traced: Traced, call: Inputs) -> nn.Module:
        flow = Flow(traced, self._fixed | self._fixed_in(traced))
        training = in_training(traced)
        if training is not None:  # what training reads elsewhere too (a head of its own) keeps its channels
            other = readers(traced, training)
            once = readers(traced, traced.graph)
            odd = {path for path in once if once[path] != other.get(path)}
            flow.keep(*(node for node in traced.graph.nodes if node.op == "call_module" and node.target in odd))
        by_mode = None if traced.specialised or id(traced.module) in self._fixed else modes(traced, training)
        right = False
        while not right:
            alive = live(flow)
            right, repairs = replay(flow, alive, may_repair=by_mode is not None)
            if not right and torch.equal(live(flow), alive):
                flow.slots.keep(torch.arange(len(alive)))  # what went wrong is nothing that keeping a channel mends
        cut(flow, alive)
        if by_mode is None:
            return traced.module
        # The class stays where its code gives what the graph gives: without sizes of its own, or with those of its layers.
        try:
            graph = rewritten(traced, repairs | by_mode)
        except Exception as error:  # an operation that does not go back into code
            if not repairs:
                return traced.module
            raise ValueError(
                f"{type(traced.module).__name__} has sizes written in its code and cannot be remade from its graph: {error}; "
                "compute them, as in x.flatten(1)"
            ) from error
        same = agree(answers(graph, call), answers(traced.module, call))
        return traced.module if same else graph

    def _fixed_in(self, traced: Traced) -> set[int]:
        """Modules whose weights others see than the graph shows."""
        layers = [traced.layer(node) for node in traced.graph.nodes if node.op == "call_module"]
        often = {key for key, n in Counter(map(id, layers)).items() if n > 1}
        found = {id(layer) for layer in layers if id(layer) in often and any(True for _ in layer.parameters())}
        found |= {id(inner) for layer in layers for inner in layer.modules() if inner is not layer}
        for layer in layers:
            own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            if any(id(tensor) in traced.read for tensor in own):
                found.add(id(layer))
        if self._calls is not None:
            n = len(self._calls.get(id(traced.module), ()))
            found |= {id(layer) for layer in layers if len(self._calls.get(id(layer), ())) != n}
        return found

    def _shrink_children(self, module: nn.Module) -> None:
        # A layer of torch may read the weights of its children past their forward.
        if type(module).__module__.startswith("torch.nn.") and not isinstance(module, CONTAINERS):
            return
        for path in list(_called(module, self._recorded())):
            self._replace(module, path)

    def _replace(self, module: nn.Module, path: str) -> None:
        child = module.get_submodule(path)
        calls = self._recorded().get(id(child), [])
        if not calls or id(child) in self._fixed:
            return
        if any(_kind(call) != _kind(calls[0]) for call in calls):
            self._shrink_children(child)
            return
        parent, _, name = path.rpartition(".")
        small = self.shrunk(child, calls[0])
        if small is not child:
            setattr(module.get_submodule(parent), name, small)

    def _recorded(self) -> dict[int, list[Inputs]]:
        """id of a module -> what it was called with, from one run of the whole model."""
        if self._calls is None:
            self._calls = record(self._model, self._call)
        return self._calls


def record(model: nn.Module, call: Inputs) -> dict[int, list[Inputs]]:
    """id of each module -> its calls in model(*call)."""
    calls: dict[int, list[Inputs]] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.setdefault(id(module), []).append((args, kwargs))

    heard = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in heard]
    try:
        positional, named = fresh(call)
        with torch.no_grad():
            model(*positional, **named)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def fixed_modules(model: nn.Module) -> set[int]:
    """Modules of which a graph does not say all: with hooks, a forward of their own, or a tensor that another has too."""
    owners: dict[int, list[int]] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners.setdefault(id(tensor), []).append(id(module))
    fixed = {module for holders in owners.values() if len(holders) > 1 for module in holders}
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            fixed.add(id(module))
    return fixed


def _kind(call: Inputs) -> object:
    """What torch.fx takes as it is in a call: all but the tensors."""
    return tree_map(lambda leaf: "tensor" if isinstance(leaf, Tensor) else repr(leaf), call)


def _called(module: nn.Module, calls: dict[int, list[Inputs]]) -> Iterator[str]:
    """Paths of the nearest modules below that are called themselves; a list of layers is not."""
    for name, child in module.named_children():
        if id(child) in calls:
            yield name
        else:
            yield from (f"{name}.{path}" for path in _called(child, calls))
