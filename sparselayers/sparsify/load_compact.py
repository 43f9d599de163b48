"""The smaller model from the class of the large one and the small weights alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .compact_parts import resize_modules
from .compaction.selected import PLAIN, SELECTED
from .compaction.written_sizes import WrittenSizes
from .evaluation import Example
from .gates import HardConcrete


@torch.no_grad()
def load_compact(model: nn.Module, state_dict: Mapping[str, Tensor], example_input: Example | None = None) -> nn.Module:
    r"""A smaller model as `compact` made it, from its state_dict and a model of the original size.

    Args:
        model: a model of the class and sizes that `compact` was given, with any weights; it is not changed.
        state_dict: of the smaller model.
        example_input: as for `compact`; needed where the code of forward has sizes written in it (`x.view(-1, 800)`).

    Returns: a new model with the shapes and values of the state_dict, in the mode (training or evaluation) of the given one.

    Raises: TypeError for what is no module or no mapping and for another kind of example; ValueError where the state_dict does
        not belong to the model, or has a layer smaller that `compact` leaves alone.

    When not to use: where the sparse weights are at hand: `compact` makes the same model of them.

    >>> import torch, sparselayers as sl
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> _ = model[0].weight.data[1:3].zero_()
    >>> saved = sl.compact(model, torch.randn(8, 4)).state_dict()
    >>> fresh = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> sl.load_compact(fresh, saved)[0]
    Linear(in_features=4, out_features=3, bias=True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}")
    small = copy.deepcopy(model)
    written = None if example_input is None else WrittenSizes(small, example_input)
    resize_modules(small, state_dict)
    for path, module in small.named_modules():
        below = f"{path}." if path else ""
        plain = PLAIN.get(type(module), type(module))
        if f"{below}index" in state_dict and plain in SELECTED:
            module.__class__ = SELECTED[plain]
            module.register_buffer("index", torch.empty_like(state_dict[f"{below}index"], device=_device(module)))
        _resize(module, {name: state_dict.get(below + name) for name in _own(module)}, path)
    try:
        small.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"state_dict is not of a smaller {type(model).__name__}: {error}") from error
    return small if written is None else written.corrected()


def _resize(module: nn.Module, saved: Mapping[str, Tensor | None], path: str) -> None:
    """Give a layer tensors of the saved shapes, and the sizes that follow."""
    changed = {
        name: x
        for name, x in saved.items()
        if x is not None and x.shape != getattr(module, name).shape and name != "index"
    }
    if not changed:
        return
    for name, x in changed.items():
        old = tuple(getattr(module, name).shape)
        if x.ndim != len(old) or any(new > size for new, size in zip(x.shape, old, strict=True)):
            raise ValueError(
                f"state_dict has {f'{path}.{name}' if path else name!r} of shape {tuple(x.shape)}, which is no part of the "
                f"model's {old}; give a model of the sizes that compact() was given"
            )
    sizes = _sizes(module, {name: tuple(x.shape) for name, x in changed.items()})
    if sizes is None:
        shapes = {name: tuple(x.shape) for name, x in changed.items()}
        raise ValueError(
            f"{path or 'the model'} is a {type(module).__name__}, which compact() does not make smaller; the state_dict has "
            f"{shapes} there; is it of another model?"
        )
    for name, x in changed.items():
        old = getattr(module, name)
        new = old.new_empty(x.shape)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    for name, size in sizes.items():
        setattr(module, name, size)


def _sizes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """The attributes of a layer that repeat the shape of its weight; None for a kind that does not shrink."""
    weight = shapes.get("weight", ())
    if isinstance(module, nn.Linear):
        return {"out_features": weight[0], "in_features": weight[1]} if weight else {}
    if isinstance(module, _ConvTransposeNd) and module.groups == 1:
        return {"in_channels": weight[0], "out_channels": weight[1]} if weight else {}
    if isinstance(module, _ConvNd):
        if module.groups == 1:
            return {"out_channels": weight[0], "in_channels": weight[1]} if weight else {}
        if module.groups == module.in_channels and weight:
            inputs = max(weight[0] * module.in_channels // module.out_channels, 1)
            return {"out_channels": weight[0], "in_channels": inputs, "groups": inputs}
        return {} if module.groups == module.in_channels else None
    if isinstance(module, _NormBase):
        return {"num_features": next(iter(shapes.values()))[0]}
    if isinstance(module, HardConcrete):
        return {"n": shapes["log_alpha"][0]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight[0]}
    return None if type(module).__module__.startswith("torch.nn.") else {}  # a tensor of a module of the user's own


def _own(module: nn.Module) -> list[str]:
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [name for name, _ in held]


def _device(module: nn.Module) -> torch.device:
    return next(p.device for p in module.parameters(recurse=False))
