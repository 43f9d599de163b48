"""Which channels have to stay: the least set that everything that stays can be computed from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .channels import Channels
from .flow import Flow


def live(flow: Flow) -> Tensor:
    """(slots,): True for a slot that is kept, or that a live output of some layer reads.

    The rest is read by nobody, or is constant wherever it is read so that a bias can stand for it. One channel of every
    tensor stays: torch has no convolution without channels.
    """
    while True:
        alive = _reached(flow)
        empty = [slots for slots in _tensors(flow) if len(slots) and not alive[slots].any()]
        if not empty:
            return alive
        flow.slots.keep(empty[0][:1])


def _reached(flow: Flow) -> Tensor:
    roots = flow.slots.roots()
    alive = torch.zeros(len(roots), dtype=torch.bool)
    alive[roots[torch.tensor(sorted(flow.slots.kept), dtype=torch.long)]] = True
    changed = True
    while changed:
        before = int(alive.sum())
        for mixer in reversed(flow.mixers):
            read = mixer.read(alive[roots[mixer.out.slots]])
            alive[roots[mixer.into.slots[read]]] = True
        changed = int(alive.sum()) > before
    return alive[roots]


def _tensors(flow: Flow) -> list[Tensor]:
    values = [leaf for value in flow.values.values() for leaf in tree_leaves(value) if isinstance(leaf, Channels)]
    # A layer that selects must keep one of those that it selects.
    return [value.slots for value in values] + [mixer.into.slots for mixer in flow.mixers]
