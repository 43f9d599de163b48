"""The smaller model of a state_dict, from the class it was compacted from."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from .compact_parts import resize_modules
from .compaction.flow import Flow
from .compaction.resize import resize_layers, resized_views
from .compaction.rewriting import modes, rewritten
from .compaction.trace import Traced, Untraceable, in_training, positional, trace
from .compaction.trial import as_inputs
from .evaluation import Example, check_example


def load_compact(model: nn.Module, state_dict: Mapping[str, Tensor], example_input: Example | None = None) -> nn.Module:
    r"""The smaller model that a state_dict is of, made from a model of full size with any weights.

    `compact` needs the zeros to find what can go; this needs only their trace, the shapes in state_dict.

    Args:
        model: a model as it was before `compact`, of the class and sizes of that one.
        state_dict: the state_dict of what `compact` returned.
        example_input: as for `compact`; needed where the code of forward has sizes written in it (`x.view(-1, 800)`).

    Returns: a new model with the weights of state_dict, in the mode that `model` is in.

    Raises: TypeError for what is no module and for another kind of example; ValueError where state_dict has other names than
        the model, or a tensor that is larger than the model's.

    When not to use: where the sparse weights are at hand: `compact` makes the same model of them.

    >>> import torch, sparselayers as sl
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> _ = model[0].weight.data[1:3].zero_()
    >>> x = torch.randn(8, 4)
    >>> small = sl.compact(model, x)
    >>> fresh = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> torch.equal(sl.load_compact(fresh, small.state_dict())(x), small(x))
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    _check_shapes(model.state_dict(), state_dict)
    small = copy.deepcopy(model).eval()
    traced = None if example_input is None else _traced(small, example_input)
    flow = None if traced is None else Flow(traced, set())
    resize_modules(small, state_dict)
    resize_layers(small, state_dict)
    if example_input is not None and traced is not None and flow is not None and not traced.specialised:
        views = resized_views(flow, positional(small, as_inputs(example_input)))
        by_mode = modes(traced, in_training(traced))
        if views and by_mode is not None:
            small = rewritten(traced, views | by_mode)
    found = small.state_dict().keys()
    if found != state_dict.keys():
        odd = sorted(found ^ state_dict.keys())
        raise ValueError(f"state_dict and the model must have the same names, got {', '.join(odd)} in one of them only")
    small.load_state_dict(state_dict)
    modes_of = {path: module.training for path, module in model.named_modules()}
    for path, module in small.named_modules():
        module.training = modes_of.get(path, model.training)
    return small


def _traced(model: nn.Module, example_input: Example) -> Traced | None:
    check_example(example_input)
    try:
        return trace(model, as_inputs(example_input))
    except Untraceable:
        return None


def _check_shapes(full: Mapping[str, Tensor], small: Mapping[str, Tensor]) -> None:
    for name, tensor in small.items():
        if name not in full:
            continue
        whole, part = tuple(full[name].shape), tuple(tensor.shape)
        if len(whole) != len(part) or any(n > most for n, most in zip(part, whole, strict=True)):
            raise ValueError(
                f"state_dict must be of a compacted model of this one: {name!r} has shape {part}, the model's {whole}; "
                "give a model of the sizes that the compacted one had before"
            )
