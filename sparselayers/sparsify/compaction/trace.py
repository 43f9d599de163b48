"""A module's forward as a graph of operations with the shape of every value, as far as torch.fx can follow it."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .trial import Inputs, agree, fresh, tensors

VARIOUS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Untraceable(Exception):
    """torch.fx cannot follow this forward; the message says where."""


@dataclass(frozen=True, eq=False)
class Traced:
    """The graph of one module's forward.

    Attributes:
        module: the module.
        graph: its operations in order.
        metas: what each node gave for the example; tensors without their data.
        read: ids of the tensors that forward took from a module itself, past the layer that owns them.
        closed: paths of the modules whose own forward could not be followed; each is one node of the graph.
        specialised: by name, the arguments that are no tensors, taken as they are in the example.
        constants: tensors that forward makes, by the names that the graph has for them.
    """

    module: nn.Module
    graph: fx.Graph
    metas: dict[fx.Node, object]
    read: set[int]
    closed: tuple[str, ...]
    specialised: dict[str, object]
    constants: dict[str, Tensor] = field(default_factory=dict)

    def layer(self, node: fx.Node) -> nn.Module:
        """The module that a call_module node calls."""
        return self.module.get_submodule(str(node.target))

    def shape(self, node: fx.Node) -> torch.Size | None:
        """The shape of what a node gives; None where that is not one tensor."""
        meta = self.metas[node]
        return meta.shape if isinstance(meta, Tensor) else None


def trace(module: nn.Module, call: Inputs) -> Traced:
    """The graph of module(*call) in the mode that it is in; Untraceable where there is none."""
    had = {inner: dict(vars(inner)) for inner in module.modules()}
    tracer = Tracer()
    constants: dict[str, Tensor] = {}
    try:
        values, specialised = _arguments(module, call)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what torch.fx says of the arguments it takes as they are
            graph = tracer.trace(module, concrete_args=specialised or None)
            recorder = _Recorder(module, graph=graph)
            found = tensors(recorder.run(*fresh(values)))
            positional, named = fresh(call)
            if not agree(tensors(module.forward(*positional, **named)), found):
                # It looks at the kind of an argument, writes with += what others hold, counts its calls: all hidden from it.
                raise Untraceable("forward gives something else than its graph")
    except Untraceable:
        raise
    except Exception as error:  # whatever stops it, there is no graph
        raise Untraceable(_where(error)) from error
    finally:
        constants.update(_restored(had))
    return Traced(module, graph, recorder.metas, tracer.read, tuple(tracer.closed), specialised, constants)


def _restored(had: dict[nn.Module, dict[str, object]]) -> dict[str, Tensor]:
    """Put back the attributes that tracing left other values in (state that forward keeps); returns the tensors it added."""
    made: dict[str, Tensor] = {}
    for module, attributes in had.items():
        for name, value in list(vars(module).items()):
            if name not in attributes:
                delattr(module, name)
                if isinstance(value, Tensor):
                    made[name] = value
            elif isinstance(value, fx.Proxy):
                setattr(module, name, attributes[name])
    return made


def in_training(traced: Traced) -> fx.Graph | None:
    """The graph of the module in training mode; None where there is none."""
    module = traced.module
    had = {inner: dict(vars(inner)) for inner in module.modules()}
    modes = {inner: inner.training for inner in module.modules()}
    module.train()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return Tracer().trace(module, concrete_args=traced.specialised or None)
    except Exception:  # whatever stops it
        return None
    finally:
        _restored(had)
        for inner, mode in modes.items():
            inner.training = mode


def readers(traced: Traced, graph: fx.Graph) -> dict[str, set[str]]:
    """Path of a layer with parameters -> the paths of those that come next and of the tensors met before, and "output"."""

    def has_parameters(node: fx.Node) -> bool:
        return node.op == "call_module" and any(True for _ in traced.layer(node).parameters())

    found: dict[str, set[str]] = {}
    for node in graph.nodes:
        if has_parameters(node):
            todo, seen = list(node.users), set()
            while todo:
                user = todo.pop()
                beside = {str(n.target) for n in user.all_input_nodes if n.op == "get_attr"}
                found.setdefault(str(node.target), set()).update(beside)
                if has_parameters(user) or user.op == "output":
                    found.setdefault(str(node.target), set()).add(str(user.target))
                elif user not in seen:
                    seen.add(user)
                    todo += user.users
    return found


def positional(module: nn.Module, call: Inputs) -> list[object]:
    """The arguments of a call in the order of forward's parameters."""
    return _arguments(module, call)[0]


def _arguments(module: nn.Module, call: Inputs) -> tuple[list[object], dict[str, object]]:
    """The values in the order of forward's parameters, and by name those that are no tensors."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*call[0], **call[1])
    bound.apply_defaults()
    named = {name: v for name, v in bound.arguments.items() if signature.parameters[name].kind not in VARIOUS}
    if any(bound.arguments[name] for name in bound.arguments.keys() - named.keys()):
        raise Untraceable("forward takes *args or **kwargs, and the example has some")
    given = {name: value for name, value in named.items() if not isinstance(value, Tensor)}
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves(given)):
        raise Untraceable("an argument of forward holds tensors in a list or dict")
    return list(named.values()), given


def _where(error: Exception) -> str:
    """The innermost line outside torch that the error passed, and what it says."""
    place, step = "", error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if "/torch/" not in code.co_filename and not code.co_filename.endswith(("compaction/trace.py", ">")):
            place = f"{code.co_filename}:{step.tb_lineno}: "
        step = step.tb_next
    return f"{place}{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class Tracer(fx.Tracer):
    """torch.fx's tracer, for which a module that it cannot follow is one operation, as a layer of torch is."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.closed: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        scripted = isinstance(m, torch.jit.ScriptModule)
        return (
            scripted
            or type(m).__module__.startswith("sparselayers.")
            or super().is_leaf_module(m, module_qualified_name)
        )

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        if isinstance(attr_val, Tensor):
            self.read.add(id(attr_val))
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward, args: tuple, kwargs: dict) -> object:
        before = set(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            for node in reversed(self.graph.nodes):
                if node not in before:
                    self.graph.erase_node(node)
            self.closed.append(self.path_of_module(m))
            return self.create_proxy("call_module", self.closed[-1], args, kwargs)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what every node gave, without the data."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.metas: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        self.metas[n] = tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), result)
        return result
