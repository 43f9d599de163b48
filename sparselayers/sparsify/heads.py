"""Attention heads as groups: a head's rows of the query, key and value projections with its columns of the output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ..ops import checks
from .cuts import Block, Cut, Part, is_conv1d


class Layout(NamedTuple):
    """Where an attention module keeps its projections, as names below it."""

    rows: tuple[str, ...]  # a head is some of their rows
    packed: tuple[str, ...]  # queries, keys and values one after the other in one projection
    columns: tuple[str, ...]  # a head is some of their columns


# nn.MultiheadAttention and this library's; then the names that models in use give to the same thing.
LAYOUTS = (
    Layout((), ("in_proj_weight",), ("out_proj",)),
    Layout(("q_proj_weight", "k_proj_weight", "v_proj_weight"), (), ("out_proj",)),
    Layout(("q_proj", "k_proj", "v_proj"), (), ("out_proj",)),
    Layout(("q_proj", "k_proj", "v_proj"), (), ("o_proj",)),
    Layout(("q_lin", "k_lin", "v_lin"), (), ("out_lin",)),
    Layout(("q", "k", "v"), (), ("o",)),
    Layout(("self.query", "self.key", "self.value"), (), ("output.dense",)),
    Layout(("attention.query", "attention.key", "attention.value"), (), ("output.dense",)),
    Layout(("to_q", "to_k", "to_v"), (), ("to_out.0",)),
    Layout((), ("qkv",), ("proj",)),
    Layout((), ("c_attn",), ("c_proj",)),
)
HEADS = ("num_heads", "n_heads", "n_head", "num_attention_heads", "heads")
KEY_HEADS = ("num_kv_heads", "num_key_value_heads")


@dataclass(frozen=True)
class Heads:
    r"""Attention heads as groups of a Regularizer, where groups="head" does not know the module.

    A group is a head: its rows of the projections of queries, keys and values, with its columns of the output
    projection. Where it vanishes the head adds nothing to the output. Biases only by `include`.

    Args:
        num_heads: heads of every module that matches.
        module: name pattern of the attention modules, such as "layers.*.attention".
        rows: names below the module of Linear layers (or parameters) whose outputs are heads side by side.
        packed: likewise, for one projection that holds queries, keys and values one after the other.
        columns: names of Linear layers whose inputs are heads side by side.
        num_kv_heads: fewer key heads (grouped queries): a group is then a key head with the query heads that it serves.

    Raises: TypeError and ValueError for counts; in Regularizer, ValueError where a projection does not divide into heads.

    Source: Michel, Levy and Neubig 2019 (heads are what can be removed).

    When not to use: for one matrix alone: a callable that views it as (heads, -1) is simpler.

    >>> import torch, sparselayers as sl
    >>> attention = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in ("query", "key", "value", "out")})
    >>> heads = sl.Heads(num_heads=2, module="", rows=("query", "key", "value"), columns=("out",))
    >>> regularizer = sl.Regularizer(attention, sl.GroupL2(), lam=100.0, groups=heads)
    >>> regularizer.step(lr=1.0)
    >>> attention["query"].weight.any(), attention["out"].weight.any()
    (tensor(False), tensor(False))
    """

    num_heads: int
    module: str = "*"
    rows: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    packed: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("out_proj",)
    num_kv_heads: int | None = None

    def __post_init__(self) -> None:
        checks.count(self.num_heads, "num_heads")
        if self.num_kv_heads is not None:
            checks.count(self.num_kv_heads, "num_kv_heads")
            if self.num_heads % self.num_kv_heads:
                raise ValueError(
                    f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
                )
        for field in ("rows", "packed", "columns"):
            names = getattr(self, field)
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                raise TypeError(f'{field} must be a tuple of names such as ("q_proj",), got {names!r}')

    @property
    def layout(self) -> Layout:
        return Layout(self.rows, self.packed, self.columns)


def head_blocks(model: nn.Module, parameters: dict[str, nn.Parameter], heads: Heads | None) -> Iterator[Block]:
    """A block an attention module: all its projections, biases too. `heads` None: every module of a known layout."""
    modules = list(model.named_modules(remove_duplicate=False))
    turned = {f"{path}.weight" if path else "weight" for path, module in modules if is_conv1d(module)}
    for path, module in modules:
        if heads is not None:
            if fnmatchcase(path, heads.module) and _has(path, heads.layout, parameters):
                yield _block(path, heads.layout, heads.num_kv_heads or heads.num_heads, parameters, turned)
            continue
        layout = next(
            (known for known in LAYOUTS if _has(path, known, parameters) and _packs_three(path, known, parameters)),
            None,
        )
        if layout is not None:
            holder = module.get_submodule(layout.rows[0].rpartition(".")[0]) if layout.rows else module
            n_heads = head_count(holder, KEY_HEADS) or head_count(holder, HEADS)
            if n_heads:
                yield _block(path, layout, n_heads, parameters, turned)


def head_count(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            found = getattr(holder, name, None)
            if isinstance(found, int):
                return found
    return None


def _resolve(path: str, name: str, parameters: dict[str, nn.Parameter]) -> list[str]:
    """The parameters of a projection: its weight, then its bias; a parameter held by the module itself, then its bias."""
    full = f"{path}.{name}" if path else name
    weight = full if full in parameters else f"{full}.weight"
    found = (weight, weight.removesuffix("weight") + "bias")
    return [name for name in found if name in parameters]


def _has(path: str, layout: Layout, parameters: dict[str, nn.Parameter]) -> bool:
    weights = [_resolve(path, name, parameters)[:1] for name in (*layout.rows, *layout.packed, *layout.columns)]
    return bool(weights) and all(weight and parameters[weight[0]].ndim == 2 for weight in weights)


def _packs_three(path: str, layout: Layout, parameters: dict[str, nn.Parameter]) -> bool:
    """A packed projection holds three times what the output projection reads; of cross-attention in GPT-2 it does not."""
    sizes = [parameters[_resolve(path, name, parameters)[0]].numel() for name in (*layout.packed, *layout.columns)]
    return not layout.packed or sizes[0] == 3 * sizes[1]


def _block(path: str, layout: Layout, n: int, parameters: dict[str, nn.Parameter], turned: set[str]) -> Block:
    """`turned`: names of weights that are stored (inputs, outputs)."""

    def part(name: str, axis: int, parts: int, cut: Cut) -> Part:
        shape = tuple(parameters[name].shape)
        stored = 1 - axis if name in turned else axis
        if shape[stored] % parts:
            raise ValueError(
                f"{name!r} of shape {shape} does not divide into {parts} parts of its axis {stored}, one a head; "
                "check num_heads, or leave it out by exclude"
            )
        return Part(name, partial(_of_the_transpose, cut) if name in turned else cut)

    rows = [name for given in layout.rows for name in _resolve(path, given, parameters)]
    packed = [name for given in layout.packed for name in _resolve(path, given, parameters)]
    columns = [_resolve(path, given, parameters)[0] for given in layout.columns]
    return (
        *(part(name, 0, n, partial(_rows_of_heads, n)) for name in rows),
        *(part(name, 0, 3 * n, partial(_packed_rows_of_heads, n)) for name in packed),
        *(part(name, 1, n, partial(_columns_of_heads, n)) for name in columns),
    )


def _of_the_transpose(cut: Cut, p: Tensor) -> Tensor:
    return cut(p.mT)


def _rows_of_heads(n: int, p: Tensor) -> Tensor:
    return p.unflatten(0, (n, p.shape[0] // n))


def _packed_rows_of_heads(n: int, p: Tensor) -> Tensor:
    return p.unflatten(0, (3, n, p.shape[0] // (3 * n))).transpose(0, 1)


def _columns_of_heads(n: int, p: Tensor) -> Tensor:
    return p.unflatten(1, (n, p.shape[1] // n)).transpose(0, 1)
