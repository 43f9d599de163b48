"""What a regularizer caught, as groups, and what it left out and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .groups import Block, Groups, Include
from .heads import Heads
from .neuron import Neurons
from .rules import owners_of, reasons
from .sharded import outlines


@dataclass(frozen=True)
class Caught:
    """A parameter caught: its groups, its entries in one group, and the entries of that whole group.

    `group_size` is more than `size` where a group has parts in several parameters (a neuron, a head).
    """

    name: str
    shape: tuple[int, ...]
    groups: int
    size: int
    group_size: int
    kind: str


@dataclass(frozen=True)
class LeftOut:
    """A parameter not caught, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class GroupSummary:
    """The parameters caught, in groups, and those left out; prints as a table, one line a parameter."""

    caught: tuple[Caught, ...]
    left_out: tuple[LeftOut, ...]

    def __str__(self) -> str:
        rows = [("caught", "shape", "groups x size", "kind")]
        for c in self.caught:
            whole = "" if c.size == c.group_size else f" of {c.group_size}"
            rows.append((c.name, _text(c.shape), f"{c.groups} x {c.size}{whole}", c.kind))
        if self.left_out:
            rows.append(("left out", "shape", "why", ""))
            rows += [(out.name, _text(out.shape), out.reason, "") for out in self.left_out]
        # Reasons run on to the right; they do not widen the column of the groups.
        table = [row for row in rows if row[3]]
        widths = [max(len(row[0]) for row in rows), max(len(row[1]) for row in rows), max(len(row[2]) for row in table)]
        lines = [
            "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[3]]).rstrip()
            for row in rows
        ]
        return "\n".join(lines)


def summarise(
    model: nn.Module, blocks: list[Block], groups: Groups, include: Include, exclude: Include
) -> GroupSummary:
    """The summary of `blocks`, as these rules cut them out of the model."""
    parameters = outlines(model)
    kind = groups if isinstance(groups, str) else {Heads: "head", Neurons: "neuron"}.get(type(groups), "callable")
    caught = []
    for block in blocks:
        shapes = [part.rows(part.cut(parameters[part.name]).detach()).shape for part in block]
        whole = sum(size for _, size in shapes)
        caught += [
            Caught(part.name, tuple(parameters[part.name].shape), n, size, whole, kind)
            for part, (n, size) in zip(block, shapes, strict=True)
        ]
    names = {id(parameters[c.name]): c.name for c in caught}
    taken = set(names.values())
    why = reasons(model, owners_of(model), groups, include, exclude)

    def reason(name: str) -> str:
        if id(parameters[name]) in names:
            return f"tied to {names[id(parameters[name])]}, caught there"
        return why[name] or (
            "no projection of a known attention" if kind == "head" else "groups(name, parameter) is None"
        )

    left = [LeftOut(name, tuple(p.shape), reason(name)) for name, p in parameters.items() if name not in taken]
    return GroupSummary(tuple(caught), tuple(left))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
