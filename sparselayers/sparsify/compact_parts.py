"""Blocks of transformers made smaller inside, with their outside as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .compaction.attention import attentions, heads_by_size, kept_heads, remove_heads
from .compaction.mlp import kept_channels, mlps, remove_channels
from .compaction.pieces import Piece
from .compaction.trial import ROUGHLY, Edits, agree, answers, as_inputs, attempt, record
from .evaluation import Example, evaluating


@torch.no_grad()
def shrink_modules(model: nn.Module, example_input: Example) -> None:
    """Remove dead heads and dead hidden channels of every known block, in place.

    A block that is not called on the example, that shares parameters with another, or that answers otherwise (or not at all)
    without its dead parts stays as it is.
    """
    shared = _shared(model)
    with evaluating(model):
        changes = [change for change in _changes(model) if not any(id(piece.tensor) in shared for piece in change[1])]
    if not changes:
        return
    calls = record(model, [block for block, _, _ in changes], example_input)
    wanted = answers(model, as_inputs(example_input))
    done = [attempt(block, calls[block], change) for block, _, change in changes if block in calls]
    if agree(wanted, answers(model, as_inputs(example_input)), slack=ROUGHLY):
        return
    # Blocks may hand on more than their first output, as T5 does with the positions of each head: one by one, then.
    for edits in reversed(done):
        if edits is not None:
            edits.undo()
    for block, _, change in changes:
        edits = attempt(block, calls[block], change) if block in calls else None
        if edits is not None and not agree(wanted, answers(model, as_inputs(example_input)), slack=ROUGHLY):
            edits.undo()


@torch.no_grad()
def resize_modules(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Give every known block as many heads and hidden channels as a smaller state_dict has, in place; their values are any."""
    paths = {module: f"{path}." if path else "" for path, module in model.named_modules()}

    def size(piece: Piece) -> int:
        return state_dict.get(paths[piece.module] + piece.name, piece.tensor).shape[piece.axis]

    for mlp in list(mlps(model)):
        hidden = size(mlp.pieces[-1])
        if hidden < mlp.sizes["hidden"]:
            remove_channels(mlp, (torch.arange(hidden), torch.zeros(())), Edits())
    for attention in list(attentions(model)):
        kept = heads_by_size(attention, size)
        if kept is not None:
            remove_heads(attention, kept, Edits())


def _changes(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[Piece, ...], Callable[[Edits], None]]]:
    """(block, its parameters, how to remove what is dead in it), one for each block with anything dead."""
    for attention in attentions(model):
        heads = kept_heads(attention)
        if heads is not None:
            yield attention.block, attention.pieces, partial(remove_heads, attention, heads)
    for mlp in mlps(model):
        channels = kept_channels(mlp)
        if channels is not None:
            yield mlp.block, tuple(mlp.pieces), partial(remove_channels, mlp, channels)


def _shared(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds: to cut one would cut the other."""
    held = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {name for name, count in held.items() if count > 1}
