"""Attention heads that add nothing to the output, removed from every attention module whose projections have known names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..heads import HEADS, KEY_HEADS, LAYOUTS, head_count
from .multihead import make_room
from .pieces import Piece, cut, dense_kind, fit, inputs, outputs, touched
from .trial import Edits

# The names of projections below a module, each with what it holds: q, k, v side by side; then the output projection.
NAMES = (
    ((("q_attn", "q"), ("c_attn", "kv")), "c_proj"),
    ((("c_attn", "qkv"),), "c_proj"),
    *(
        ((*zip(known.rows, "qkv", strict=False), *((name, "qkv") for name in known.packed)), known.columns[0])
        for known in LAYOUTS
    ),
)
RATIOS = ("num_key_value_groups", "n_rep")  # query heads a key head
WIDTHS = ("all_head_size", "split_size", "inner_dim")  # of all heads together


class Attention(NamedTuple):
    """An attention module: the block whose outside stays, its parameters by what they hold, its heads and their widths."""

    block: nn.Module
    holder: nn.Module  # has the counts
    pieces: tuple[Piece, ...]
    sizes: Mapping[str, int]  # channels of q, k, v, o (the output's inputs); head: heads
    heads: int
    key_heads: int


def attentions(model: nn.Module) -> Iterator[Attention]:
    """Every attention module of a model that is known by its class or by the names of its projections."""
    for module in model.modules():
        pieces = _torch_pieces(module) if isinstance(module, nn.MultiheadAttention) else _named_pieces(module)
        if pieces is None:
            continue
        names, holder = pieces
        heads = head_count(holder, HEADS)
        key_heads = head_count(holder, KEY_HEADS) or heads
        if not heads or not key_heads or heads % key_heads:
            continue
        own = {**dict(holder.named_parameters(recurse=False)), **dict(holder.named_buffers(recurse=False))}
        a_head = [Piece(holder, name, 0, ("head",)) for name, x in own.items() if x.shape == (heads,)]
        taken = {(piece.module, piece.name) for piece in names}
        names += [piece for piece in a_head if (piece.module, piece.name) not in taken]
        sizes = {"head": heads, **_widths(names, heads, key_heads)}
        if fit(names, sizes):
            yield Attention(module, holder, tuple(names), sizes, heads, key_heads)


def kept_heads(attention: Attention) -> tuple[Tensor, Tensor] | None:
    """The query heads and the key heads that have to stay; None where all do.

    A head is removed where each channel of its value is either exactly 0 (its row of the value projection, with its bias) or
    unread (its column of the output projection is 0). Key heads go with the last of their query heads, and the others keep
    equally many: the modules know only of one number. One head stays.
    """
    heads, key_heads, sizes = attention.heads, attention.key_heads, attention.sizes
    read = touched(attention.pieces, "o", sizes).cpu().view(key_heads, heads // key_heads, -1)
    written = touched(attention.pieces, "v", sizes).cpu().view(key_heads, 1, -1)
    alive = (read & written).any(-1)
    if not alive.any():
        alive[0, 0] = True
    groups = alive.any(1).nonzero().flatten()
    most = int(alive.sum(1).max())
    # The heads in use first, then those that only fill up, each in their order.
    order = alive[groups].int().argsort(dim=1, descending=True, stable=True)[:, :most].sort(1).values
    queries = (order + groups.unsqueeze(1) * (heads // key_heads)).flatten()
    return None if len(queries) == heads else (queries, groups)


def heads_by_size(attention: Attention, size: Callable[[Piece], int]) -> tuple[Tensor, Tensor] | None:
    """The first heads, as many as parameters of the given sizes have room for; None where that is all."""
    width = {part: attention.sizes[part] // attention.heads for part in "qo"}
    width |= {part: attention.sizes[part] // attention.key_heads for part in "kv"}
    output = next(piece for piece in attention.pieces if piece.parts == ("o",))
    value = next(piece for piece in attention.pieces if "v" in piece.parts)
    heads = size(output) // width["o"]
    queries = heads * width["q"] if "q" in value.parts else 0
    keys = (size(value) - queries) // sum(width[part] for part in value.parts if part != "q")
    return None if heads >= attention.heads else (torch.arange(heads), torch.arange(keys))


def remove_heads(attention: Attention, kept: tuple[Tensor, Tensor], edits: Edits) -> None:
    """Keep these query heads and key heads; counts that the module holds follow."""
    queries, keys = kept
    pieces, sizes, holder = list(attention.pieces), attention.sizes, attention.holder
    if type(attention.block) is nn.MultiheadAttention:
        make_room(attention.block, edits)
        pieces.append(Piece(attention.block, "kept_heads", 0, ("head",)))

    def channels(part: str, heads: Tensor, count: int) -> Tensor:
        return torch.arange(sizes[part]).view(count, -1)[heads].flatten()

    index = {"head": queries}
    index |= {part: channels(part, queries, attention.heads) for part in ("q", "o")}
    index |= {part: channels(part, keys, attention.key_heads) for part in ("k", "v")}
    cut(pieces, index, sizes, edits)
    # Where only the model's configuration has the counts, which stays as it is, the module gets its own.
    for name, names in (("num_heads", HEADS), ("num_key_value_heads", KEY_HEADS)):
        if head_count(holder, names) and not any(other in vars(holder) for other in names):
            edits.set(holder, name, head_count(holder, names))
    counts = {
        **dict.fromkeys(HEADS, (attention.heads, len(queries))),
        **dict.fromkeys(KEY_HEADS, (attention.key_heads, len(keys))),
        **dict.fromkeys(RATIOS, (attention.heads // attention.key_heads, len(queries) // len(keys))),
        **dict.fromkeys(WIDTHS, (sizes["o"], len(index["o"]))),
    }
    for name, (old, new) in counts.items():
        if vars(holder).get(name) == old:
            edits.set(holder, name, new)


def _torch_pieces(module: nn.MultiheadAttention) -> tuple[list[Piece], nn.Module] | None:
    """nn.MultiheadAttention and its subclasses, whose forward may or may not do with fewer heads."""
    if parametrize.is_parametrized(module) or dense_kind(module.out_proj) is None:
        return None
    held = {"in_proj_weight": "qkv", "q_proj_weight": "q", "k_proj_weight": "k", "v_proj_weight": "v"}
    held |= {"in_proj_bias": "qkv"}
    pieces = [Piece(module, name, 0, tuple(parts)) for name, parts in held.items()]
    pieces += [Piece(module, "bias_k", 2, ("k",)), Piece(module, "bias_v", 2, ("v",))]
    pieces = [piece for piece in pieces if getattr(module, piece.name, None) is not None]
    return [*pieces, *inputs(module.out_proj, "o")], module


def _named_pieces(module: nn.Module) -> tuple[list[Piece], nn.Module] | None:
    for projections, output in NAMES:
        layers = [find(module, name) for name, _ in projections]
        last = find(module, output)
        if layers and last is not None and all(layer is not None for layer in layers):
            held = zip(layers, (parts for _, parts in projections), strict=True)
            pieces = [piece for layer, parts in held if layer is not None for piece in outputs(layer, *parts)]
            holder = module.get_submodule(projections[0][0].rpartition(".")[0])
            return [*pieces, *inputs(last, "o")], holder
    return None


def find(module: nn.Module, name: str) -> nn.Module | None:
    """The dense layer of that name below a module."""
    for step in name.split("."):
        child = getattr(module, step, None)
        if not isinstance(child, nn.Module):
            return None
        module = child
    return module if dense_kind(module) is not None else None


def _widths(pieces: list[Piece], heads: int, key_heads: int) -> dict[str, int]:
    """Channels of q, k, v and o from the shapes, by the width of a head; what does not fit is found by `fit`."""
    by_parts = {piece.parts: piece.tensor.shape[piece.axis] for piece in reversed(pieces)}
    out = by_parts[("o",)]
    joint = by_parts.get(("q", "k", "v"))
    query = by_parts.get(("q",), (joint or 0) * heads // (heads + 2 * key_heads))
    both = by_parts.get(("k", "v"), 0)
    value = out // heads * key_heads
    key = by_parts.get(("k",), both - value if both else query // heads * key_heads)
    return {"q": query, "k": key, "v": value, "o": out}
