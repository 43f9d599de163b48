"""Parameters by name, found by their paths: a walk over the whole model costs more than a prox step on small weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of these names as they stand now; ValueError where the model has one no longer."""
    try:
        return _by_path(model, names)
    except KeyError:  # a wrapper that names its parameters otherwise, or one that is gone
        parameters = dict(model.named_parameters(remove_duplicate=False))
    gone = [name for name in names if name not in parameters]
    if gone:
        known = ", ".join(parameters) or "none"
        raise ValueError(
            f"the model has no parameter {', '.join(gone)} any more, only {known}; make the regularizer anew"
        )
    return {name: parameters[name] for name in names}


def _by_path(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    found = {}
    for name in names:
        module = model
        path = name.split(".")
        last = path.pop()
        for step in path:
            module = module._modules[step]  # type: ignore[assignment]
        found[name] = module._parameters[last]
        if found[name] is None:
            raise KeyError(name)
    return found  # type: ignore[return-value]
