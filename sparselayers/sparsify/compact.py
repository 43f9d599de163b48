"""A smaller model with the same outputs: what zeros in the weights make superfluous is cut off."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from .compact_parts import shrink_modules
from .compact_pruning import prune_graph
from .compaction.selected import Selected
from .compaction.shrink import Shrinker
from .compaction.trial import Inputs, agree, answers, as_inputs, fresh, questions
from .evaluation import Example, call, check_example
from .timing import repeated, rows_of


def compact(model: nn.Module, example_input: Example) -> nn.Module:
    r"""A new, smaller model that gives the same outputs in evaluation mode.

    A channel goes when no layer reads it (its column is zero in all of them), or when it is constant (its row is zero, or a
    normalisation's gamma is), whatever elementwise functions, pooling or normalisation come between; the biases behind
    take over what it added. A constant other than 0 under a convolution that pads with zeros is kept, since the border would
    be wrong. All is worked out on the graph of the model, so that one removal makes others possible. Where a tensor has to
    keep an entry that one layer does not read (an input, a residual stream), that layer selects: its state_dict has an
    `index` more. What the graph does not show, or shows in operations that mix channels, stays as it is.

    The model is copied; layers keep their class and their names in the state_dict, with smaller shapes. Where the code has
    sizes written in it (`x.view(-1, 800)`) the result is a torch.fx.GraphModule with the same names.

    Args:
        model: any nn.Module; torch.fx has to follow its forward, or that of modules within it.
        example_input: a tensor, a tuple of arguments or a dict of named ones, as the model takes. The shapes count, and that
            the outputs are compared on it.

    Returns: the smaller model, in the mode (training or evaluation) that the model is in.

    Raises: TypeError for what is no module and for another kind of example; ValueError where the outputs of the smaller model
        are not those of the model, or where nothing in it can be followed.

    When not to use: for zeros that lie scattered in a weight, which no smaller dense layer can leave out; before the end of
        training without making a new optimizer.

    >>> import torch, sparselayers as sl
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> _ = model[0].weight.data[1:3].zero_(), model[2].weight.data[:, 3].zero_()
    >>> x = torch.randn(8, 4)
    >>> small = sl.compact(model, x)
    >>> small[0].weight.shape, small[2].weight.shape
    (torch.Size([2, 4]), torch.Size([2, 2]))
    >>> torch.allclose(small(x), model(x), atol=1e-6)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    check_example(example_input)
    _check_weights(model)
    small = _copied(model)
    modes = {path: module.training for path, module in small.named_modules()}
    small.eval()
    with torch.no_grad():
        call(small, fresh(example_input))  # what is wrong with the example is said in the model's own words
    asked, wanted = _questions(small, example_input)
    shrink_modules(small, example_input)
    shrinker = Shrinker(small, asked[0])
    small = shrinker.shrunk(small, asked[0])
    if shrinker.closed and _size(small) == _size(model):
        _prune(small, example_input, shrinker.failures[0])
    if not _agrees(small, asked, wanted) and not _agrees_in_double(model, small, asked):
        raise ValueError(
            "the outputs of the smaller model are not those of the model: the model is not a function of its inputs alone "
            "(random numbers in evaluation mode, a state that moves: take that out of forward), or rounding alone moves its "
            "outputs (compact it in float64), or this is a bug in compact(); the model was not changed"
        )
    kept = dict(model.named_buffers())
    for path, module in small.named_modules():
        module.training = modes.get(path, model.training)
        for name, buffer in module.named_buffers(recurse=False):
            old = kept.get(f"{path}.{name}" if path else name)
            if old is not None and old.shape == buffer.shape and not isinstance(module, Selected):
                buffer.data = old.detach().clone()  # as it was before forward ran, which may count its calls there
    return small


def _check_weights(model: nn.Module) -> None:
    """ValueError for a model whose weights are not there to be looked at, or that is no longer code."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a scripted module cannot be made smaller; compact the model first, then use torch.jit")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name} is not initialised yet; call the model once on an example first")
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values, which say what can go; load the weights first"
            )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except TypeError as error:
        raise ValueError(
            f"the model cannot be copied: {error}; take what that is out of its attributes first"
        ) from error
    except RuntimeError as error:
        made = [
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        raise ValueError(
            f"the model cannot be copied: it holds tensors that are results of others, {', '.join(made) or 'somewhere'}; "
            "make masks permanent first, by torch.nn.utils.prune.remove, or run the model under torch.no_grad()"
        ) from error


def _questions(model: nn.Module, example_input: Example) -> tuple[list[Inputs], list[list[Tensor]]]:
    """The example, random numbers of its shape, two rows where it has one, as far as the model takes them; its answers.

    Two rows come first: one may be taken for an axis of another kind.
    """
    asked = questions(as_inputs(example_input))
    if rows_of(example_input) == 1:
        asked = [*questions(as_inputs(repeated(example_input, 2))), *asked]
    answered = [(question, answers(model, question)) for question in asked]
    good = [(question, answer) for question, answer in answered if answer is not None]
    return [question for question, _ in good], [answer for _, answer in good]


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _prune(model: nn.Module, example_input: Example, failure: str) -> None:
    try:
        prune_graph(model, example_input)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"compact() cannot follow the model by torch.fx ({failure}), nor otherwise: {error}"
        ) from error


def _agrees(small: nn.Module, asked: list[Inputs], wanted: list[list[Tensor]]) -> bool:
    return all(agree(one, answers(small, question)) for one, question in zip(wanted, asked, strict=True))


def _agrees_in_double(model: nn.Module, small: nn.Module, asked: list[Inputs]) -> bool:
    """The same in float64, where a difference is no rounding of sums, to the precision of the model."""
    wide = [tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, question) for question in asked]
    one, other = (copy.deepcopy(m).eval().double() for m in (model, small))
    found = [(a, b) for q in wide if (a := answers(one, q)) is not None and (b := answers(other, q)) is not None]
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return len(found) == len(asked) and all(agree(*([t.to(dtype) for t in side] for side in pair)) for pair in found)
