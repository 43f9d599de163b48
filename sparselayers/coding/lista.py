"""LISTA and its relatives: unrolled steps whose matrices, strengths or three constants are fitted to the signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, cast, overload

import torch
from torch import Tensor, nn

from .. import positive
from ..ops import checks
from ..prox import L1, Penalty
from ..schedules import Homotopy, Schedule
from . import dictionary as atoms
from .directions import Analytic, Coupled, Free
from .ista import Shrink, check_hyperparameters, check_strength
from .objective import objective
from .random_search import random_search
from .rules import Hyper, Scheduled
from .support_selection import SupportSelection, keep_largest

Variant = Literal["lista", "cp", "alista", "hyper"]
LEARNED = {"lista": ("dictionary", "lam"), "cp": ("dictionary", "lam"), "alista": ("lam", "step"), "hyper": ()}
LEARNABLE = ("dictionary", "lam", "step")
FALL = 0.85  # picked on the random problems below: none was worse with it than without


class LISTA(nn.Module):
    r"""Sparse coding by `depth` steps that are learned, or tuned, for the signals at hand.

    z_k = prox_{t_k R}(v_k),  v_k = z_{k-1} - step_k g_k(z_{k-1}),  z_0 = 0,  and for the variants

        "lista"   g_k(z) = G_k z - W_k^T x      at first D^T D and D^T: ISTA        t_k = step_k gain_k lam_k
        "cp"      g_k(z) = W_k^T (D z - x)      at first D: ISTA                    t_k = step_k gain_k lam_k
        "alista"  g_k(z) = W^T (D z - x)        W = F.analytic_weight(D)            t_k = step_k gain_k lam_k
        "hyper"   g_k(z) = W^T (D z - x)        the same                            t_k = step_k c1 e_k

    lam_k is the schedule's, gain_k is 1 until it is learned. In "hyper" all follows the residual of each sample:
    with r_k = ‖D^+ (D z_{k-1} - x)‖_1 it is e_k = min(r_k, fall^(k-1) r_1); c2 ‖z_{k-1}‖_0 (z_{k-1} - z_{k-2}) is added to
    v_k, and the share c3 log(r_1 / r_k) of the atoms is trusted: see `SupportSelection`.

    Args:
        n_features, n_atoms: the shape of the dictionary D, attribute `dictionary`.
        depth: number of steps.
        lam: strength: a number, or a tensor (), (n_atoms,) one an atom, or (..., 1) one a sample. The steps of "hyper" do
            not use it, only `objective` does.
        penalty: R. Any penalty of the library.
        shrink: a callable (v, t) -> v in the place of the prox of R.
        schedule: `Homotopy()` (lam_max per sample, from the penalty and the first g) or `Constant()`; not in "hyper".
        step: step size; None is 1 / ‖D‖² in "lista" and "cp", and 1.0 in "alista" and "hyper".
        dictionary: the initial D, copied; Gaussian unit atoms if None.
        learn: which of these are parameters; None is ("dictionary", "lam") in "lista" and "cp", ("lam", "step") in
            "alista", nothing in "hyper".
            "dictionary": the matrices of each step, G_k and W_k, in "lista" and "cp", while D, which decodes, stays as
            it is; D itself, with W following it, in "alista" and "hyper". What is not learned is made of D once: after a
            change of D in place make a new layer.
            "lam": gain_k, one a step (one a step and an atom where lam is one an atom), or the constants of "hyper".
            "step": step_k, one a step.
        variant: see above.
        support: a `SupportSelection`, or None to shrink all entries; not in "hyper", which has its own.
        constants: (c1, c2, c3) of "hyper"; None is (4.4, 1, 0.27 n_features² / n_atoms) / n_features.
        fall: in (0, 1], of "hyper"; None is 0.85. The threshold falls at least so much a step. With 1 the residual alone
            decides, as in the paper, and samples with many active atoms may stall.
        device, dtype: of the dictionary.

    Shape: x (..., n_features) -> z (..., n_atoms).

    Raises: TypeError and ValueError at construction, with the remedy.

    Source: Gregor and LeCun, ICML 2010 ("lista"); Chen, Liu, Wang and Yin, NeurIPS 2018 ("cp"); Liu, Chen, Wang and Yin,
        ICLR 2019 ("alista"); Chen, Liu, Wang and Yin, NeurIPS 2021 ("hyper", with the coherence inside c1 and c2).

    When not to use: "alista" and "hyper" are for sparse codes of incoherent dictionaries and may diverge elsewhere
        (`F.analytic_rate` tells); for codes that minimise the objective, use a converged solver.

    >>> import torch, sparselayers as sl
    >>> layer = sl.LISTA(2, 2, depth=4, lam=0.5, dictionary=torch.eye(2), variant="alista")
    >>> layer(torch.tensor([1.0, -0.2])).detach()
    tensor([0.5000, 0.0000])
    """

    dictionary: Tensor

    def __init__(
        self,
        n_features: int,
        n_atoms: int,
        *,
        depth: int,
        lam: float | Tensor = 0.1,
        penalty: Penalty = L1(),  # noqa: B008 - a frozen dataclass
        shrink: Shrink | None = None,
        schedule: Schedule = Homotopy(),  # noqa: B008
        step: float | Tensor | None = None,
        dictionary: Tensor | None = None,
        learn: Sequence[str] | None = None,
        variant: Variant = "lista",
        support: SupportSelection | None = None,
        constants: tuple[float, float, float] | None = None,
        fall: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._start = (step.detach().clone() if isinstance(step, Tensor) else step, constants, fall)
        checks.count(n_features, "n_features")
        checks.count(n_atoms, "n_atoms")
        if not isinstance(penalty, Penalty):
            raise TypeError(f"penalty must be a Penalty such as L1(), got {penalty!r}; pass a callable as shrink=")
        if shrink is not None and not callable(shrink):
            raise TypeError(f"shrink must be a callable (v, t) -> v such as SigShrink(lam, tau), got {shrink!r}")
        learn = LEARNED.get(variant, ()) if learn is None else learn
        atoms.check_learn(learn, LEARNABLE)
        check_variant(variant, support, constants, fall, learn)
        check_hyperparameters(lam, depth, shrink or penalty, schedule, step, None, penalty, n_atoms)
        check_strength(lam, n_atoms, penalty)
        analytic = variant in ("alista", "hyper")
        follow, free = analytic and "dictionary" in learn, not analytic and "dictionary" in learn
        self.n_features, self.n_atoms, self.depth, self.variant = n_features, n_atoms, depth, variant
        self.penalty, self.shrink, self.schedule, self.support = penalty, shrink, schedule, support
        self.learn = tuple(learn)
        D = atoms.hold(self, n_features, n_atoms, dictionary, follow, device, dtype)
        positive.hold(self, "lam", lam, False, D)
        if step is None:
            step = 1.0 if analytic else atoms.safe_step(D)
        if "step" in learn:
            step = torch.as_tensor(step, dtype=D.dtype, device=D.device)
            step = step.expand(depth, *step.shape)
        positive.hold(self, "step", step, "step" in learn, D)
        self.direction = Analytic(D, follow) if analytic else (Free if variant == "lista" else Coupled)(D, depth, free)
        shared = ("lam" in learn, D, follow)
        self.rule: Scheduled | Hyper = (
            Hyper(constants or default_constants(n_features, n_atoms), FALL if fall is None else fall, *shared)
            if variant == "hyper"
            else Scheduled(lam, penalty, schedule, support, depth, "lam" in learn, D)
        )

    @property
    def lam(self) -> float | Tensor:
        """The strength of the objective and of the schedule, without the gains."""
        return positive.held(self, "lam")

    @property
    def step(self) -> float | Tensor:
        """The step size; (depth,) where it is learned, one a step."""
        return positive.held(self, "step")

    @property
    def constants(self) -> tuple[float, float, float] | None:
        """(c1, c2, c3) of "hyper", else None."""
        if not isinstance(self.rule, Hyper):
            return None
        c1, c2, c3 = self.rule.constants.tolist()
        return c1, c2, c3

    @overload
    def forward(self, x: Tensor, trace: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, trace: Literal[True]) -> tuple[Tensor, list[Tensor]]: ...
    def forward(self, x: Tensor, trace: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """x (..., n_features) -> z (..., n_atoms); with `trace` also the list of z_1 .. z_depth."""
        found = self._codes(x)
        return (found[-1], found) if trace else found[-1]

    def _codes(self, x: Tensor) -> list[Tensor]:
        D = self.dictionary
        atoms.check(x, D)
        shrink = self.penalty.prox if self.shrink is None else self.shrink
        direction = self.direction.at(x, D)
        g = direction(None, 1)
        plan = self.rule.at(-g, D, self.lam, self._step_of(1))
        previous = z = x.new_zeros(*x.shape[:-1], self.n_atoms)
        codes: list[Tensor] = []
        for k in range(1, self.depth + 1):
            g = g if k == 1 else direction(z, k)
            step = self._step_of(k)
            t, kept, momentum = plan(z, g, k, step)
            v = z - step * g
            if momentum is not None:
                v = v + momentum * (z - previous)
            previous, z = z, keep_largest(v, shrink(v, t), kept)
            codes.append(z)
        return codes

    def _step_of(self, k: int) -> float | Tensor:
        return cast(Tensor, self.step)[k - 1] if "step" in self.learn else self.step

    def decode(self, z: Tensor) -> Tensor:
        """The signal of a code: z (..., n_atoms) -> D z (..., n_features)."""
        return atoms.decode(z, self.dictionary)

    def objective(self, x: Tensor) -> Tensor:
        """1/2 ‖x - D z_k‖² + lam R(z_k) after each step, per sample: x (..., n_features) -> (depth, ...)."""
        return objective(x, self.dictionary, torch.stack(self._codes(x)), self.lam, self.penalty)

    def tune(self, x: Tensor, codes: Tensor, trials: int = 70, generator: torch.Generator | None = None) -> Self:
        """Set the constants of "hyper" by a random search for the least squared error; no training, no gradient.

        Args:
            x: (..., n_features), signals like those to come.
            codes: (..., n_atoms), the codes they were made of.
            trials: how many constants are tried, the present ones first: the error never gets worse.
            generator: a CPU generator; None is one with the seed 0, so that the same call finds the same constants.

        Returns: the layer itself. Reads the errors back at each trial, which makes a GPU wait.

        Raises: ValueError for another variant and for shapes that do not fit.
        """
        if not isinstance(self.rule, Hyper):
            raise ValueError(
                f'tune sets the constants of "hyper", got variant={self.variant!r}; train this layer instead'
            )
        checks.count(trials, "trials")
        atoms.check(x, self.dictionary)
        checks.floating(codes, "codes")
        if codes.shape != (*x.shape[:-1], self.n_atoms):
            expected = (*x.shape[:-1], self.n_atoms)
            raise ValueError(f"codes must be {expected} for x of shape {tuple(x.shape)}, got {tuple(codes.shape)}")
        rule = self.rule

        def score(constants: Tensor) -> float:
            rule.set(constants)
            return float((self(x) - codes).square().sum())

        generator = torch.Generator().manual_seed(0) if generator is None else generator
        with torch.no_grad():
            rule.set(random_search(score, rule.constants.detach().cpu().clone(), trials, generator))
        return self

    def reset_parameters(self) -> None:
        """Draw new Gaussian unit atoms, and start all that was learned or tuned anew at them."""
        atoms.redraw(self)
        step, constants, fall = self._start
        fresh = LISTA(
            self.n_features,
            self.n_atoms,
            depth=self.depth,
            lam=self.lam,
            penalty=self.penalty,
            shrink=self.shrink,
            schedule=self.schedule,
            step=step,
            dictionary=self.dictionary,
            learn=self.learn,
            variant=self.variant,
            support=self.support,
            constants=constants,
            fall=fall,
        )
        self.direction.load_state_dict(fresh.direction.state_dict())
        self.rule.load_state_dict(fresh.rule.state_dict())
        name = "log_step" if "step" in self.learn else "fixed_step"
        if isinstance(getattr(fresh, name), Tensor):
            with torch.no_grad():
                getattr(self, name).copy_(getattr(fresh, name))

    def extra_repr(self) -> str:
        step = positive.brief(self, "step")
        shown = f"{self.n_features}, {self.n_atoms}, depth={self.depth}, variant={self.variant!r}, "
        shown += f"penalty={self.penalty!r}, step={step}, learn={self.learn!r}"
        if isinstance(self.rule, Hyper):
            shown += f", constants=({', '.join(f'{c:.3g}' for c in self.constants or ())})"
            return shown + f", fall={self.rule.fall}"
        lam = positive.brief(self, "lam")
        return shown + f", lam={lam}, schedule={self.schedule!r}, support={self.support!r}"


def default_constants(n_features: int, n_atoms: int) -> tuple[float, float, float]:
    """A compromise found by search over noiseless and noisy random problems of several sizes; `tune` does better."""
    return 4.4 / n_features, 1.0 / n_features, 0.27 * n_features / n_atoms


def check_variant(
    variant: str,
    support: SupportSelection | None,
    constants: tuple[float, float, float] | None,
    fall: float | None,
    learn: Sequence[str],
) -> None:
    """ValueError or TypeError for an unknown variant, and for what a variant does not have."""
    if variant not in LEARNED:
        raise ValueError(f"variant must be one of {', '.join(map(repr, LEARNED))}, got {variant!r}")
    if support is not None and not isinstance(support, SupportSelection):
        raise TypeError(f"support must be a SupportSelection or None, got {support!r}")
    if variant == "hyper" and support is not None:
        raise ValueError('"hyper" selects its support by constants[2]; leave support=None')
    if variant != "hyper" and constants is not None:
        raise ValueError(f'constants belong to variant="hyper", got variant={variant!r}; leave constants=None')
    if variant != "hyper" and fall is not None:
        raise ValueError(f'fall belongs to variant="hyper", got variant={variant!r}; leave fall=None')
    if fall is not None:
        checks.number(fall, "fall", low=0.0, high=1.0, open_low=True)
    if constants is not None:
        if not isinstance(constants, Sequence) or len(constants) != 3:
            raise ValueError(f"constants must be three numbers (c1, c2, c3), got {constants!r}")
        for name, value in zip(("c1", "c2", "c3"), constants, strict=True):
            checks.number(value, name, low=0.0)
        if "lam" in learn and 0 in constants:
            raise ValueError(f"learned constants stay positive and cannot start at {constants!r}; give constants > 0")
