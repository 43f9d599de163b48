"""A model called once on an example, in evaluation mode, as it was left afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

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
