"""The prox step inside every way torch steps: `python -m tests.conformance` prints the table; the tests check each cell.

A row is an optimizer with a regularizer on it, a column something that training does around `optimizer.step()`. Every check
compares with a twin that steps by the plain optimizer and takes the prox by hand, or bit for bit with the weights before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

import sparselayers as sl

LAM, PENALTY = 0.2, sl.GroupL2()
ROWS: dict[str, tuple[Callable[..., Optimizer], str | None]] = {}
for _how in ("loop", "foreach", "fused"):
    _flags = {"foreach": _how == "foreach", "fused": _how == "fused"}
    ROWS[f"SGD, {_how}"] = partial(SGD, lr=0.05, momentum=0.9, **_flags), None
    ROWS[f"ProxSGD, {_how}"] = partial(sl.ProxSGD, lr=0.05, momentum=0.9, **_flags), "inside"
    ROWS[f"AdamW, {_how}"] = partial(AdamW, lr=0.02, **_flags), None
    ROWS[f"AdamW in its metric, {_how}"] = partial(AdamW, lr=0.02, **_flags), "optimizer"
    ROWS[f"Adam (amsgrad) in its metric, {_how}"] = partial(Adam, lr=0.02, amsgrad=True, **_flags), "optimizer"
    ROWS[f"ProxAdamW, {_how}"] = partial(sl.ProxAdamW, lr=0.02, **_flags), "inside"
    ROWS[f"Adagrad in its metric, {_how}"] = partial(Adagrad, lr=0.05, lr_decay=0.1, **_flags), "optimizer"
    if _how != "fused":
        ROWS[f"RMSprop in its metric, {_how}"] = partial(RMSprop, lr=0.002, foreach=_how == "foreach"), "optimizer"


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False), nn.Linear(3, 2)).double()


def loss_of(model: nn.Module, part: slice = slice(None)) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(16, n, dtype=torch.float64, generator=g)[part] for n in (5, 2))
    return (model(x) - y).square().mean()


class Trained:
    """A model, its optimizer and its regularizer, on two of three weights."""

    def __init__(self, row: str, split: bool = False) -> None:
        make, self.metric = ROWS[row]
        self.model = network()
        params = list(self.model.parameters())
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}] if split else params
        self.regularizer = sl.Regularizer(self.model, PENALTY, LAM, include=["0.weight", "2.weight"])
        if self.metric == "inside":
            self.optimizer = make(groups, regularizer=self.regularizer)
        else:
            self.optimizer = make(groups)
            self.regularizer.attach(self.optimizer, metric=self.metric, floor=0.0)

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            self.optimizer.zero_grad()
            loss_of(self.model).backward()
            self.optimizer.step()


class ByHand:
    """The same in plain steps: torch's optimizer of that name without us, then a prox in float64, tensor by tensor."""

    def __init__(self, row: str, split: bool = False) -> None:
        make, self.metric = ROWS[row]
        self.model = network()
        params = list(self.model.parameters())
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}] if split else params
        kind = {sl.ProxSGD: SGD, sl.ProxAdamW: AdamW}.get(make.func, make.func)  # type: ignore[attr-defined]
        options = {"weight_decay": 0.0} if make.func is sl.ProxAdamW else {}  # type: ignore[attr-defined]
        self.optimizer = kind(groups, **make.keywords, **options)  # type: ignore[attr-defined]
        self.momentum: dict[Tensor, Tensor] = {}

    def prox(self) -> None:
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None or not any(p is self.model[i].weight for i in (0, 2)):
                    continue
                old, t = p.detach().clone(), float(group["lr"]) * LAM
                d = (
                    None
                    if self.metric is None or isinstance(self.optimizer, SGD)
                    else diagonal(self.optimizer, group, p)
                )
                p.data.copy_(PENALTY.prox(old, t, metric=d))
                if isinstance(self.optimizer, SGD) and self.metric == "inside":
                    self.optimizer.state[p]["momentum_buffer"].add_((old - p.detach()) / group["lr"])

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            self.optimizer.zero_grad()
            loss_of(self.model).backward()
            self.optimizer.step()
            self.prox()


def diagonal(optimizer: Optimizer, group: dict, p: Tensor) -> Tensor:
    """D as the papers write it."""
    state = optimizer.state[p]
    k = float(state["step"])
    if isinstance(optimizer, Adam):
        v = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        return (v / (1 - group["betas"][1] ** k)).sqrt() + group["eps"]
    if isinstance(optimizer, RMSprop):
        v = state["square_avg"] - (state["grad_avg"] ** 2 if group["centered"] else 0)
        return v.sqrt() + group["eps"]
    return (state["sum"].sqrt() + group["eps"]) * (1 + (k - 1) * group["lr_decay"])


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in model.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-9)


def steps(row: str) -> None:
    one, other = Trained(row), ByHand(row)
    one.step(5)
    other.step(5)
    same(one.model, other.model)


def param_groups(row: str) -> None:
    one, other = Trained(row, split=True), ByHand(row, split=True)
    one.step(5)
    other.step(5)
    same(one.model, other.model)


def scheduler(row: str) -> None:
    one, other = Trained(row), ByHand(row)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(x.optimizer, 0.05, total_steps=9, cycle_momentum=False)
        for x in (one, other)
    ]
    for _ in range(8):
        for x, schedule in zip((one, other), schedulers, strict=True):
            x.step()
            schedule.step()
    same(one.model, other.model)


def closure(row: str) -> None:
    one, other = Trained(row), ByHand(row)

    def evaluate() -> Tensor:
        one.optimizer.zero_grad()
        loss = loss_of(one.model)
        loss.backward()
        return loss

    for _ in range(4):
        before = loss_of(one.model)
        assert one.optimizer.step(evaluate) == before
    other.step(4)
    same(one.model, other.model)


def overflow(row: str) -> None:
    """GradScaler: a step with an infinite gradient leaves every bit, also the first one; the next is an ordinary step."""
    one, other = Trained(row), ByHand(row)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    # torch's fused SGD leaves its momentum uninitialised where the very first step overflows; ProxSGD mends that.
    factors = (torch.inf, 1.0, torch.inf, 1.0) if row != "SGD, fused" else (1.0, torch.inf, torch.inf, 1.0)
    for factor in factors:
        before = bits(one.model)
        one.optimizer.zero_grad()
        scaler.scale(loss_of(one.model) * factor).backward()
        scaler.step(one.optimizer)
        scaler.update()
        assert (bits(one.model) == before) == (factor != 1)
    assert scaler.get_scale() == 4
    other.step(2)
    same(one.model, other.model)


def accumulation(row: str) -> None:
    one, other = Trained(row), ByHand(row)
    for _ in range(3):
        one.optimizer.zero_grad()
        for part in (slice(0, 8), slice(8, 16)):
            (loss_of(one.model, part) / 2).backward()
        one.optimizer.step()
    other.step(3)
    same(one.model, other.model)


def clipping(row: str) -> None:
    one, other = Trained(row), ByHand(row)
    for x in (one, other):
        for _ in range(3):
            x.optimizer.zero_grad()
            loss_of(x.model).backward()
            nn.utils.clip_grad_norm_(x.model.parameters(), 0.1)
            x.optimizer.step()
            if isinstance(x, ByHand):
                x.prox()
    same(one.model, other.model)


def no_gradient(row: str) -> None:
    one = Trained(row)
    one.step(2)
    before = bits(one.model)
    one.optimizer.zero_grad()
    one.model[0].weight.grad = torch.zeros(7, 5, dtype=torch.float64)
    one.optimizer.step()
    after = bits(one.model)
    assert {name for name in before if after[name] != before[name]} == {"0.weight"}


def deepcopied(row: str) -> None:
    """ProxSGD and ProxAdamW are copied with their regularizer; a hook is not copied (torch's rule) and is attached again."""
    one, other = Trained(row), ByHand(row)
    one.step(2)
    twin = copy.deepcopy(one)
    if one.metric != "inside":
        twin.regularizer.attach(twin.optimizer, metric=one.metric, floor=0.0)
    before = bits(one.model)
    twin.step(3)
    assert bits(one.model) == before
    other.step(5)
    same(twin.model, other.model)
    one.step(3)
    same(one.model, other.model)


def state_dicts(row: str) -> None:
    """A checkpoint of model and optimizer goes on where it was."""
    one, other = Trained(row), Trained(row)
    one.step(3)
    saved = copy.deepcopy((one.model.state_dict(), one.optimizer.state_dict()))
    other.model.load_state_dict(saved[0])
    other.optimizer.load_state_dict(saved[1])
    one.step(2)
    other.step(2)
    assert bits(one.model) == bits(other.model)


COLUMNS: dict[str, Callable[[str], None]] = {
    "steps": steps,
    "param groups": param_groups,
    "scheduler": scheduler,
    "closure": closure,
    "GradScaler": overflow,
    "accumulation": accumulation,
    "clipping": clipping,
    "no gradient": no_gradient,
    "deepcopy": deepcopied,
    "state_dict": state_dicts,
}


def outcome(check: Callable[[str], None], row: str) -> str:
    try:
        check(row)
    except Exception as error:
        return type(error).__name__
    return "ok"


def table() -> Iterator[str]:
    yield f"torch {torch.__version__}, CPU, float64\n"
    yield "| | " + " | ".join(COLUMNS) + " |"
    yield "|---|" + "---|" * len(COLUMNS)
    for row in ROWS:
        yield f"| {row} | " + " | ".join(outcome(check, row) for check in COLUMNS.values()) + " |"


if __name__ == "__main__":
    for line in table():
        print(line)
