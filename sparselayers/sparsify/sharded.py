"""Parameters that FSDP2 or tensor parallelism has spread over processes (DTensor), seen as plain tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from .cuts import Block

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(x: Tensor) -> TypeGuard[DTensor]:
    """Is `x` a DTensor? Where their module, which is slow to import, was never imported there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def any_sharded(parameters: Iterable[Tensor]) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(issubclass(kind, module.DTensor) for kind in set(map(type, parameters)))


def local(x: Tensor) -> Tensor:
    """This process's part of a DTensor, sharing its memory; any other tensor itself."""
    return x.to_local() if is_sharded(x) else x


def whole(x: Tensor) -> Tensor:
    """All of a DTensor, gathered, differentiably; any other tensor itself. Every process must call it."""
    return x.full_tensor() if is_sharded(x) else x


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process holds whole, placed and sharded as `like` is."""
    if is_sharded(full) or not is_sharded(like):
        return full.to(like.device)
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    everywhere = DTensor.from_local(full.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, like.placements)


def outlines(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name; in the place of a DTensor an empty tensor of its whole shape, to cut without communication."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not any_sharded(parameters.values()):
        return parameters
    seen: dict[int, nn.Parameter] = {}
    for p in parameters.values():
        if is_sharded(p):
            seen.setdefault(id(p), nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad))
    return {name: seen.get(id(p), p) for name, p in parameters.items()}


class Unsharded:
    """Plain tensors to cut, for parameters that may be DTensors; `write()` brings what was changed back to the shards.

    A block whose groups lie in rows, sharded by rows, is worked where it is. Any other is gathered whole: every process
    computes the same, and keeps its own part.
    """

    def __init__(self, parameters: Mapping[str, Tensor], blocks: Iterable[Block]) -> None:
        self.tensors: dict[str, Tensor] = dict(parameters)
        self._gathered: list[tuple[Tensor, Tensor]] = []
        if not any_sharded(parameters.values()):
            return
        for block in blocks:
            members = {part.name: parameters[part.name].detach() for part in block}
            if not any(map(is_sharded, members.values())):
                continue
            in_place = all(part.by_rows for part in block) and all(map(_by_rows, members.values()))
            for name, p in members.items():
                self.tensors[name] = local(p) if in_place else whole(p)
                if is_sharded(p) and not in_place:
                    self._gathered.append((p, self.tensors[name]))

    @torch.no_grad()
    def write(self) -> None:
        for shard, full in self._gathered:
            local(shard).copy_(local(shard_like(full, shard)))


def _by_rows(p: Tensor) -> bool:
    """Does every process hold whole rows?"""
    if not is_sharded(p):
        return False
    from torch.distributed.tensor import Replicate, Shard

    return all(isinstance(place, Replicate) or (type(place) is Shard and place.dim == 0) for place in p.placements)
