"""A penalty on a model's weights: as a term of the loss, as a prox step in place, or after every optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..ops import checks
from ..ops.norm import upcast
from ..prox import Penalty
from ..prox.base import with_metric
from .freeze import Freeze, zeros_of
from .groups import Groups, Include, cut_model
from .hook import ProxHook
from .metric import FLOOR, Rate, Rates, adaptive, euclidean, kind, unsharded_rates
from .multitensor import prox_
from .named import named
from .sharded import Unsharded, outlines, whole
from .stationarity import stationarity
from .strength import Rule, State, Steering, unless
from .strongest import lam_max
from .summary import GroupSummary, summarise
from .vanishing import shrinks, vanishing


class Regularizer:
    r"""lam times a penalty, summed over groups of a model's weights.

    value() = lam sum_groups R(w_g);    step(lr): w_g <- argmin_w 1/2 ‖w - w_g‖² + lr lam R(w), with exact zeros.

    Args:
        model: any nn.Module; the regularizer keeps parameter names, not parameters.
        penalty: any penalty; it sees each group as a row.
        lam: strength >= 0, or what moves it at every step of an optimizer: `LamSchedule`, `DensityTarget`. May be
            reassigned between steps (`regularizer.lam = ...`); reading it gives the strength in use.
        groups: how weights are cut. "output": rows of a Linear, filters of a convolution; "input": columns, input
            channels; "neuron": an output row with its bias and the entries of the normalisation that follows it in an
            nn.Sequential (`Neurons` where the model's code says it); "filter": as "output", convolutions only; "kernel":
            each 2-D kernel; "head": an attention head, its rows of the query, key and value projections with its columns
            of the output projection (`Heads` where the module is of no known layout); "outgoing": "input" and "bias"
            together; "element"; "bias": each bias entry; "tensor": the whole parameter; or a callable (name, parameter) ->
            view (n_groups, group_size), or None to leave the parameter out.
        include: rules: name patterns such as "encoder.*.weight", module classes such as nn.Conv2d, predicates
            (name, parameter) -> bool; one or several. By default every weight of Linear and convolution layers, the
            projections of nn.MultiheadAttention among them, that no other kind of module shares; biases only by
            "neuron", "outgoing", "bias" or `include`. A tied parameter is taken once.
        exclude: rules of what is left out in any case.

    Raises: TypeError or ValueError where the cut does not fit, naming the parameter, its shape and the remedy.

    Source: Yuan and Lin 2006; Scardapane et al. 2017 (groups of a network); Alvarez and Salzmann 2016 (prox steps).

    When not to use: two of them on one parameter: a sum's prox is not the composition of proxes (an error in `attach`).

    >>> import torch, sparselayers as sl
    >>> layer = torch.nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    >>> regularizer = sl.Regularizer(layer, sl.GroupL2(), lam=10.0)
    >>> regularizer.step(lr=0.1)
    >>> layer.weight.data
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty,
        lam: float | Tensor | Rule | Steering,
        groups: Groups = "output",
        include: Include = None,
        exclude: Include = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if not isinstance(penalty, Penalty):
            raise TypeError(f"penalty must be a Penalty such as GroupL2(), got {penalty!r}")
        self.model, self.penalty, self.groups = model, penalty, groups
        self.include, self.exclude = include, exclude
        self.blocks = cut_model(model, groups, include, exclude)
        self.lam = lam  # type: ignore[assignment]
        self.frozen: Freeze | None = None

    @property
    def lam(self) -> float | Tensor:
        """The strength in use."""
        return self._progress["lam"]

    @lam.setter
    def lam(self, lam: float | Tensor | Rule | Steering) -> None:
        if isinstance(lam, Steering):
            self._shrinks = shrinks(self.penalty, 1 if self.penalty.separable else self._sizes()[0][1])
        self._rule: Rule | Steering | None = None
        self._progress: State
        if isinstance(lam, Rule | Steering):
            self._rule, self._progress = lam, lam.initial()
        else:
            try:
                checks.scalar(lam, "lam", low=0.0)
            except TypeError as error:
                raise TypeError(f"{error}; a LamSchedule or a DensityTarget moves it") from None
            self._progress = {"lam": lam}

    @property
    def names(self) -> list[str]:
        """The parameters caught."""
        return [part.name for block in self.blocks for part in block]

    def value(self) -> Tensor:
        """lam times the penalty of all groups, a 0-d tensor to add to the loss; differentiable in the weights."""
        total = self._sum()
        # A constraint (an indicator, a sign) holds whatever lam is: infinity, not 0 times it, where it is broken.
        return torch.where(total.isposinf(), total.detach(), self.lam * total).to(self._dtype)

    def _sum(self) -> Tensor:
        """The penalty of all groups, for 16-bit weights in float32: a sum over a model leaves the range of float16."""
        parameters = self._caught()
        rows = (
            torch.cat([part.rows(part.cut(whole(parameters[part.name]))) for part in block], 1) for block in self.blocks
        )
        return torch.stack([self.penalty.value(upcast(matrix)).sum() for matrix in rows]).sum()

    @property
    def _dtype(self) -> torch.dtype:
        """That of the weights, which several promote to."""
        return reduce(torch.promote_types, (p.dtype for p in self._caught().values()))

    def step(self, lr: float | Tensor) -> None:
        """One prox step in place on everything caught: w <- prox(w, t = lr lam)."""
        checks.number(lr, "lr", low=0.0)
        self._apply(dict.fromkeys(self.names, Rate(lr)))

    def attach(self, optimizer: Optimizer, metric: str | None = None, floor: float = FLOOR) -> RemovableHandle:
        """Take a prox step after every `optimizer.step()`, with each parameter's current lr; remove by handle.remove().

        Parameters without a gradient, and steps that a GradScaler skips, change nothing. Hooks do not survive
        copy.deepcopy or pickling of the optimizer (a torch rule): attach again, or use ProxSGD and ProxAdamW. Attach to
        the torch optimizer itself, not to a wrapper of it.

        Args:
            optimizer: any torch optimizer.
            metric: None is the Euclidean prox, t = lr lam, also with Adam. "optimizer" is the prox in the step size of each
                entry, argmin_w 1/2 (w - v)^T D (w - v) + lr lam R(w), with D read from the optimizer's state: sqrt(v_hat)
                + eps in Adam, AdamW and NAdam, likewise in RMSprop and Adagrad. Only so are the fixed points those of
                loss + lam R.
            floor: with "optimizer": D counts as at least this part of its root mean square over the parameter. Else a
                weight that is rarely visited, whose D is tiny, would shrink to zero between two visits. 0 is exact.

        Raises: ValueError for an optimizer that holds none of the parameters, a second regularizer on one of them, an
            optimizer without a known D, or a penalty without a prox: in a metric, at all, or for groups of this size.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; attach to the optimizer within"
            )
        if metric not in (None, "optimizer"):
            raise ValueError(f'metric must be None or "optimizer", got {metric!r}')
        if metric is None:
            return self._attach(optimizer, euclidean)
        checks.number(floor, "floor", low=0.0)
        kind(optimizer)
        if not self.penalty.has_metric:
            raise ValueError(
                f'{self.penalty!r} has no prox in a metric, which metric="optimizer" needs; '
                f"those that have: {', '.join(with_metric())}; or use metric=None, the Euclidean prox"
            )
        return self._attach(optimizer, partial(adaptive, floor=floor))

    def _attach(self, optimizer: Optimizer, rates: Callable[[Optimizer], Rates]) -> RemovableHandle:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        caught = {name: id(p) for name, p in self._caught().items()}
        if not held & set(caught.values()):
            raise ValueError(
                "the optimizer holds none of the parameters caught; build it from this model's parameters, or attach after "
                "the model was moved or sharded"
            )
        hooks: list[object] = list(optimizer._optimizer_step_post_hooks.values())
        for hook in hooks:
            twice = hook.caught & set(caught.values()) if isinstance(hook, ProxHook) else set()
            if twice:
                names = sorted(name for name, held_by in caught.items() if held_by in twice)
                raise ValueError(
                    f"{', '.join(names)}: caught by two regularizers, and a sum's prox is not the composition of proxes; "
                    "remove one, separate them by include, or use a penalty that has both terms (SparseGroup)"
                )
        self._check_prox()
        return optimizer.register_step_post_hook(ProxHook(self, rates))

    def _sizes(self) -> list[tuple[str, int]]:
        """The parameters of each block, and the entries of a group in it."""
        outline = outlines(self.model)
        sizes = [sum(math.prod(part.cut(outline[part.name]).shape[part.lead :]) for part in b) for b in self.blocks]
        return [(", ".join(part.name for part in block), size) for block, size in zip(self.blocks, sizes, strict=True)]

    def _check_prox(self) -> None:
        """ValueError now, not at the first step, where the penalty has no prox or none for groups of this size."""
        for names, size in self._sizes():
            try:
                self.penalty.prox(torch.empty(0, size), 0.0)
            except ValueError as error:
                raise ValueError(f"{names} in groups of {size}: {error}") from error

    def stationarity(self, step: float | Tensor | Optimizer = 1.0) -> Tensor:
        """After a backward: how far the weights are from a stationary point of loss + lam R, in [0, 1]; 0-d.

        With v = w - lr D^-1 g and w' = prox(v) in that metric: ‖w - w'‖ / (‖w - v‖ + ‖v - w'‖), over all parameters
        caught that have a gradient g. It is 0 where the gradient and the penalty's pull cancel, and 1 without a penalty.

        Args:
            step: lr, with D = 1; or an optimizer, for the lr it started with and, where it has one and has taken a step,
                its D.
        """
        return stationarity(self.penalty, self.blocks, self._caught(), step, self.lam)

    def lam_max(self, lr: float | Tensor = 1.0) -> Tensor:
        """After a backward: the smallest lam with which a prox step from here makes every group zero, a 0-d tensor.

        prox_{lr lam R}(w - lr g) = 0 for all groups from lam = max over groups of penalty.lam_max(w / lr - g, lr) on. At
        w = 0 it is the smallest lam at which 0 stays stationary, max ‖g‖ for GroupL2, whatever lr. Parameters without a
        gradient take no part. ValueError for a penalty without one.
        """
        return lam_max(self.penalty, self.blocks, self._caught(), lr)

    def freeze(self) -> Freeze:
        """Hold every caught entry that is exactly zero now at zero, for fine-tuning; let go by handle.remove().

        After every step of any optimizer these entries, and their momentum, are zero. A later call replaces the pattern.
        """
        return self._hold(zeros_of(self._caught(), self.names))

    def _hold(self, zeros: dict[str, Tensor]) -> Freeze:
        if self.frozen is not None:
            self.frozen.remove()
        self.frozen = Freeze(self.model, zeros)
        return self.frozen

    def summary(self) -> GroupSummary:
        """What was caught (name, shape, groups x size, kind) and what not and why; prints as a table."""
        return summarise(self.model, self.blocks, self.groups, self.include, self.exclude)

    def state_dict(self) -> dict[str, object]:
        """lam, the pattern that `freeze` holds, None without one, and where what moves lam has come to."""
        held = self.frozen is not None and self.frozen.active
        state: dict[str, object] = {
            "lam": self.lam,
            "frozen": dict(self.frozen.zeros) if held and self.frozen else None,
        }
        return state if self._rule is None else {**state, "progress": dict(self._progress)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over lam, a schedule's place and the frozen pattern, which is held from now on."""
        missing = {"lam", "frozen"} - state.keys()
        if missing:
            raise ValueError(
                f"state must come from Regularizer.state_dict(), got one without {', '.join(sorted(missing))}"
            )
        zeros = cast("dict[str, Tensor] | None", state["frozen"])
        parameters = self._parameters()
        for name, held in (zeros or {}).items():
            if name not in parameters or parameters[name].shape != held.shape:
                got = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise ValueError(f"the frozen pattern has {name!r} of shape {tuple(held.shape)}, the model {got}")
        if self._rule is None or "progress" not in state:
            self.lam = cast(float, state["lam"])
        else:
            self._progress = dict(cast(State, state["progress"]))
        if self.frozen is not None:
            self.frozen.remove()
        self.frozen = None if zeros is None else Freeze(self.model, dict(zeros))

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters(remove_duplicate=False))

    def _caught(self) -> dict[str, nn.Parameter]:
        return named(self.model, self.names)

    @torch.no_grad()
    def _apply(self, rates: Mapping[str, Rate], skipped: Tensor | None = None) -> None:
        """The prox of every block; a parameter without a rate stays as it is."""
        parameters = self._caught()
        self._steer(parameters, rates, skipped)
        unsharded = Unsharded(parameters, self.blocks)
        rates = unsharded_rates(rates, parameters, self.blocks)
        prox_(self.penalty, self.blocks, unsharded.tensors, rates, self.lam, skipped)
        unsharded.write()

    def _steer(self, parameters: Mapping[str, Tensor], rates: Mapping[str, Rate], skipped: Tensor | None) -> None:
        """Before a prox step: what looks at the weights to find lam does."""
        if isinstance(self._rule, Steering):
            strengths = vanishing(self.penalty, self.blocks, parameters, rates)
            if strengths.numel():
                new = self._rule.steer(self._progress, strengths, self._shrinks)
                self._progress = unless(skipped, new, self._progress)

    def _advance(self, skipped: Tensor | None = None) -> None:
        """A step was taken: what counts steps to move lam moves it."""
        if isinstance(self._rule, Rule):
            self._progress = unless(skipped, self._rule.advance(self._progress), self._progress)

    def __repr__(self) -> str:
        count = f"{len(self.names)} parameter{'s' * (len(self.names) != 1)}"
        return f"Regularizer({self.penalty!r}, lam={self.lam}, groups={self.groups!r}, {count})"
