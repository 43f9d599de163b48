"""A model sharded by FSDP2 beside the whole one, stepped alike: run as `python -m tests.sharded_model PROCESSES FILE`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sparselayers as sl


def columns(name: str, p: nn.Parameter) -> Tensor | None:
    return p.mT if p.ndim == 2 else None


GROUPS: tuple[str | Callable, ...] = ("output", "input", "neuron", "element", "tensor", "head", "outgoing", columns)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 4))
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).unsqueeze(1)
        return self.attention(y, y, y)[0] * 1


def compare(groups: str | Callable, before: bool, world: int, metric: str | None) -> None:
    whole, model = Net(), Net()
    args = (sl.GroupL2(), 1.2 if metric is None else 0.01, groups)
    twin, regularizer = sl.Regularizer(whole, *args), sl.Regularizer(model, *args)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    if not before:
        regularizer = sl.Regularizer(model, *args)
    assert str(regularizer.summary()) == str(twin.summary())
    both = ((model, regularizer), (whole, twin))
    if metric is None:
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m, _ in both]
    else:
        optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m, _ in both]
    for (_, r), optimizer in zip(both, optimizers, strict=True):
        r.attach(optimizer, metric=metric)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    held = []
    for step in range(4):
        for (m, _), optimizer in zip(both, optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
        if step == 1:
            torch.testing.assert_close(regularizer.value(), twin.value())
            torch.testing.assert_close(regularizer.lam_max(), twin.lam_max())
            held = [r.freeze() for _, r in both]
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.full_tensor(), q, msg=lambda text, at=(groups, metric, name): f"{at}: {text}")
    zeros = torch.cat([whole.get_parameter(name).detach().flatten() == 0 for name in twin.names])
    assert zeros.any() or groups not in ("output", "element")
    assert not zeros.all()
    regularizer.load_state_dict(twin.state_dict())  # a pattern kept by the whole model, held by the sharded one
    for freeze in (*held, regularizer.frozen):
        freeze.remove()


def compare_split(groups: str | Callable, before: bool, world: int) -> None:
    whole, model = Net(), Net()
    args = (0.01, 0.5, 1.25, groups)
    twin, split = sl.PenaltyDecomposition(whole, *args), sl.PenaltyDecomposition(model, *args)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    if not before:
        split = sl.PenaltyDecomposition(model, *args)
    for m, s in ((model, split), (whole, twin)):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            optimizer.zero_grad()
            (m(x).square().mean() + s.value()).backward()
            optimizer.step()
            s.step()
        s.load_state_dict(s.state_dict())
        s.apply()
    for name, v in twin.V.items():
        torch.testing.assert_close(split.V[name].full_tensor(), v)
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.full_tensor(), q)
    split.load_state_dict(twin.state_dict())


def compare_density(metric: str | None, penalty: sl.Penalty, world: int) -> None:
    whole, model = Net(), Net()
    both = [(m, sl.Regularizer(m, penalty, sl.DensityTarget(0.5, warmup=2))) for m in (model, whole)]
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    for m, regularizer in both:
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.02)
        regularizer.attach(optimizer, metric=metric)
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
        for _ in range(4):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(both[0][1].lam, both[1][1].lam)
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.full_tensor(), q)


def work(rank: int, world: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    for groups in GROUPS:
        for before in (True, False):
            compare(groups, before, world, None)
            if groups in ("output", "input", "neuron"):  # by rows, gathered, and several parameters
                compare(groups, before, world, "optimizer")
            compare_split(groups, before, world)
    for metric in (None, "optimizer"):
        for penalty in (sl.GroupL2(), sl.L1()):
            compare_density(metric, penalty, world)
    dist.destroy_process_group()


if __name__ == "__main__":
    processes, meeting = int(sys.argv[1]), sys.argv[2]
    if processes == 1:
        work(0, 1, meeting)
    else:
        mp.spawn(work, (processes, meeting), nprocs=processes)
    print("the same")
