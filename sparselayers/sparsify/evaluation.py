"""A model called once on an example, in evaluation mode, as it was left afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Example = Tensor | tuple | Mapping[str, object]


def check_example(example_input: Example) -> None:
    """TypeError unless it is a tensor, a tuple of arguments or a dict of named ones."""
    if not isinstance(example_input, Tensor | tuple | Mapping):
        raise TypeError(
            "example_input must be a tensor, a tuple of arguments or a dict of named ones, "
            f"got {type(example_input).__name__}"
        )


def call(model: nn.Module, example_input: Example) -> object:
    """model(example_input), a tuple as its arguments and a dict as the named ones."""
    if isinstance(example_input, Mapping):
        return model(**example_input)
    return model(*(example_input if isinstance(example_input, tuple) else (example_input,)))


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, so that no statistics move and nothing is dropped; then in its own mode again."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def fresh(inputs: Any) -> Any:
    """A copy of any structure of inputs that a model may write into; what is one tensor in it stays one."""
    made: dict[int, Tensor] = {}

    def plain(x: Tensor) -> Tensor:
        return x if x.grad_fn is None else made.setdefault(id(x), x.detach())

    return copy.deepcopy(tree_map_only(Tensor, plain, inputs))


def tensors(output: object) -> list[Tensor]:
    """Every tensor in an output, in its dataclasses too."""
    found: list[Tensor] = []
    for leaf in tree_leaves(dict(output) if isinstance(output, Mapping) else output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, f.name) for f in fields(leaf)])
    return found
