"""Dead channels of graphs that torch.fx cannot trace, removed along the dependency graph of torch-pruning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .compaction.trial import Inputs, agree, answers, as_inputs, fresh, questions
from .evaluation import Example, check_example

REMEDY = "python -m pip install 'sparselayers[prune]'"


def prune_graph(model: nn.Module, example_input: Example) -> None:
    """Remove, in place, every channel that is exactly dead in all layers that share it.

    A channel goes where no layer reads it (its columns are 0 in all of them), or where all layers that write it write exactly
    0 (rows and biases, or the entries of the batch norm behind). The graph is the one of the example: autograd's. After each
    group the model has to answer as before, on the example and on random numbers, or the group stays.

    Raises: ImportError without torch-pruning; ValueError where it cannot follow the model.
    """
    tp = _torch_pruning()
    check_example(example_input)
    asked = questions(as_inputs(example_input))
    wanted = [answers(model, question) for question in asked]
    refused: set[nn.Module] = set()
    with _tracing(model):
        while _prune_a_group(tp, model, asked, wanted, refused):
            pass


def _prune_a_group(
    tp: Any, model: nn.Module, asked: list[Inputs], wanted: list[list[Tensor] | None], refused: set[nn.Module]
) -> bool:
    """Prune one group of a fresh graph, as each changes the others, or refuse it; False where nothing is dead any more."""
    graph = _graph(tp, model, asked[0])
    if not any(map(_zeros, model.modules())):
        return False
    for root in list(graph.module2node):
        if root in refused or not isinstance(root, _ConvNd | nn.Linear):
            continue
        try:
            channels = _dead(graph, _group(graph, root, range(_writes(root).numel())))
            group = _group(graph, root, channels) if channels else None
        except Exception:  # operations that the graph has misunderstood
            refused.add(root)
            continue
        if group is None:
            continue
        kept = _snapshot(model)
        if graph.check_pruning_group(group):  # else it is the last channels of a layer
            try:
                group.prune()
            except Exception:  # a layer that the graph has misunderstood
                _restore(kept)
            else:
                found = [answers(model, question) for question in asked]
                if all(map(agree, wanted, found)):
                    return True
                _restore(kept)
        refused.add(root)
        return True
    return False


def _zeros(layer: nn.Module) -> bool:
    """Whether a layer has a channel that it does not read, or writes as 0."""
    if isinstance(layer, _ConvNd | nn.Linear) and not _reads(layer).all():
        return True
    return isinstance(layer, _ConvNd | nn.Linear | _BatchNorm) and not bool(_writes(layer).all())


def _group(graph: Any, root: nn.Module, channels: Iterable[int]) -> Any:
    """The group of these channels; RuntimeError where the graph leads in circles, as it may around attention."""
    dependencies = [dependency for node in graph.module2node.values() for dependency in node.dependencies]
    limit = count(-20 * len(dependencies))

    def counted(triggered: Callable[[object], bool], by: object) -> bool:
        if next(limit) > 0:
            raise RuntimeError("torch-pruning runs in circles")
        return triggered(by)

    for dependency in dependencies:
        dependency.is_triggered_by = partial(counted, type(dependency).is_triggered_by.__get__(dependency))
    return graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, list(channels))


def _dead(graph: Any, group: Any) -> list[int]:
    """Channels of the root that nobody reads; if all are read, those that are written as 0."""
    n = len(group[0].idxs)
    unread, silent = torch.ones(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    readers = 0
    for item in group:
        node, layer = item.dep.target, item.dep.target.module
        outgoing = graph.is_out_channel_pruning_fn(item.dep.handler)
        reads = not outgoing and isinstance(layer, _ConvNd | nn.Linear)
        if outgoing and not node.outputs:
            return []  # what the model returns is read by whoever called it
        if type(layer).__name__.startswith("_"):
            continue  # an operation between layers, without weights
        if (isinstance(layer, _ConvNd) and layer.groups > 1) or not isinstance(layer, _ConvNd | nn.Linear | _BatchNorm):
            return []  # channels that mix, or a layer of unknown ways
        used = _reads(layer) if reads else _writes(layer)
        used = used.cpu()[torch.tensor(item.idxs)]
        roots = torch.tensor(item.root_idxs)
        if reads:
            readers += 1
            unread[roots[used]] = False
        elif not (isinstance(layer, _ConvNd | nn.Linear) and _before_norm(node)):
            silent[roots[used]] = False
    if not readers:
        return []
    return (unread if unread.any() else silent).nonzero().flatten().tolist()


def _before_norm(node: Any) -> bool:
    """Batch norms alone read this layer: what they write counts."""
    return all(isinstance(after.module, _BatchNorm) for after in node.outputs)


def _reads(layer: nn.Module) -> Tensor:
    """(inputs,): True where the layer reads a channel."""
    return _any(layer.weight, 0 if isinstance(layer, _ConvTransposeNd) else 1)


def _writes(layer: nn.Module) -> Tensor:
    """(outputs,): True where the layer writes something else than 0."""
    if isinstance(layer, _BatchNorm) and layer.weight is None:
        return torch.ones(layer.num_features, dtype=torch.bool)
    written = _any(layer.weight, 1 if isinstance(layer, _ConvTransposeNd) else 0)
    return written if layer.bias is None else written | _any(layer.bias, 0)


def _any(x: object, axis: int) -> Tensor:
    """True for each place along an axis of a parameter with anything but 0."""
    rows = (cast(Tensor, x).detach() != 0).movedim(axis, 0)
    return rows if rows.ndim == 1 else rows.flatten(1).any(1)


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as missing:
        raise ImportError(
            f"torch.fx cannot trace this model, and torch-pruning, which may, is not installed; use: {REMEDY}"
        ) from missing
    return torch_pruning


def _graph(tp: Any, model: nn.Module, inputs: Inputs) -> Any:
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of parameters outside layers, which are left alone here
            return tp.DependencyGraph().build_dependency(
                model, fresh(inputs), lambda model, given: model(*given[0], **given[1]), verbose=False
            )
    except Exception as error:
        raise ValueError(
            f"neither torch.fx nor torch-pruning can follow {type(model).__name__} ({type(error).__name__}: {error}); "
            "compact the parts of it that are an nn.Sequential one by one"
        ) from error


@contextmanager
def _tracing(model: nn.Module) -> Iterator[None]:
    """All parameters with gradients, as autograd leads the way; then each as it was, the shorter ones too."""
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        model.requires_grad_(True)
        model.eval()
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        for module, mode in modes.items():
            module.training = mode


def _snapshot(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """What every module holds, shallow: pruning replaces parameters and sizes, it does not write into them."""
    return [
        (module, vars(module) | {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers")})
        for module in model.modules()
    ]


def _restore(kept: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, held in kept:
        vars(module).clear()
        vars(module).update(held)
