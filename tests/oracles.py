"""Independent answers: naive float64 twins, row by row in numpy, by bisection where there is an equation to solve."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

Row = np.ndarray


def bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function, to the last bit."""
    for _ in range(300):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def soft(v: Row, t: Row | float) -> Row:
    return np.sign(v) * np.maximum(np.abs(v) - t, 0)


def simplex(v: Row, d: Row, radius: float) -> Row:
    level = bisect(
        lambda tau: np.maximum(v - tau / d, 0).sum() - radius, (d * v).min() - d.max() * radius, (d * v).max()
    )
    return np.maximum(v - level / d, 0)


def l1_ball(v: Row, d: Row, radius: float) -> Row:
    return v.copy() if np.abs(v).sum() <= radius else np.sign(v) * simplex(np.abs(v), d, radius)


def exclusive(v: Row, t: float, d: Row) -> Row:
    total = bisect(lambda s: np.maximum(np.abs(v) - t * s / d, 0).sum() - s, 0.0, np.abs(v).sum())
    return soft(v, t * total / d)


def l_inf(v: Row, t: float, d: Row) -> Row:
    if (d * np.abs(v)).sum() <= t:
        return np.zeros_like(v)
    level = bisect(lambda tau: (d * np.maximum(np.abs(v) - tau, 0)).sum() - t, 0.0, np.abs(v).max())
    return np.sign(v) * np.minimum(np.abs(v), level)


def group_l2(v: Row, t: float, d: Row) -> Row:
    if t == 0:
        return v.copy()
    if np.linalg.norm(d * v) <= t:
        return np.zeros_like(v)
    length = bisect(lambda s: np.linalg.norm(d * v / (d * s + t)) - 1, 0.0, np.linalg.norm(v))
    return d * v * length / (d * length + t)


def entry_cost(penalty) -> tuple[Callable, Callable, list[float]] | None:
    """What one size x >= 0 costs, its slope for x > 0, and where the slope bends; None for another kind of penalty."""
    match type(penalty).__name__:
        case "LHalf":
            return np.sqrt, lambda x: 0.5 / np.sqrt(np.maximum(x, 1e-300)), []
        case "TransformedL1":
            a = penalty.a
            return lambda x: (a + 1) * x / (a + x), lambda x: a * (a + 1) / (a + x) ** 2, []
        case "LogSum":
            return lambda x: np.log1p(x / penalty.eps), lambda x: 1 / (penalty.eps + x), []
        case "MCP" | "GroupMCP":
            g = penalty.gamma
            return (
                lambda x: np.where(x < g, x - x**2 / (2 * g), g / 2),
                lambda x: np.where(x < g, 1 - x / g, 0.0),
                [g],
            )
        case "SCAD":
            a = penalty.a
            return (
                lambda x: np.where(x < 1, x, np.where(x < a, (2 * a * x - x**2 - 1) / (2 * (a - 1)), (a + 1) / 2)),
                lambda x: np.where(x < 1, 1.0, np.where(x < a, (a - x) / (a - 1), 0.0)),
                [1.0, a],
            )
    return None


def best_size(penalty, size: float, t: float) -> float:
    """argmin_x>=0 1/2 (x - size)² + t cost(x): a dense grid over all of [0, size], then bisection beside its every low point."""
    cost, slope, bends = entry_cost(penalty)
    if t == 0 or size == 0:
        return size
    grid = np.linspace(0, size, 2001)
    grid = np.unique(np.concatenate([grid, grid[1] * np.linspace(0, 1, 201), [b for b in bends if b < size]]))

    def objective(x):
        return (x - size) ** 2 / 2 + t * cost(x)

    values = objective(grid)
    candidates = [0.0, size]
    for i in range(1, len(grid)):
        last = i == len(grid) - 1
        if values[i] <= values[i - 1] and (last or values[i] <= values[i + 1]):
            high = grid[i] if last else grid[i + 1]
            candidates.append(bisect(lambda x: -(x - size + t * float(slope(x))), grid[i - 1], high))
    return min(candidates, key=lambda x: (float(objective(np.array(x))), x))


def l1_minus_l2(v: Row, t: float, alpha: float) -> Row:
    """The best stationary point over all supports: there x = (abs(v) - t) (1 + alpha t / its norm), or one entry alone."""
    size, found = np.abs(v), [np.zeros_like(v)]
    for keep in itertools.product([False, True], repeat=len(v)):
        left = np.where(keep, size - t, 0)
        if any(keep) and (left[list(keep)] > 0).all():
            found.append(left * (1 + alpha * t / np.linalg.norm(left)))
        if sum(keep) == 1 and (size - (1 - alpha) * t)[list(keep)] > 0:
            found.append(np.where(keep, size - (1 - alpha) * t, 0))

    def cost(x: Row) -> float:
        return ((x - size) ** 2).sum() / 2 + t * (x.sum() - alpha * np.linalg.norm(x))

    return np.sign(v) * min(found, key=cost)


def sparse_group_l0(v: Row, entry: float, group: float) -> Row:
    """The best of all supports, each shrunk as a group."""
    found = [np.zeros_like(v)]
    for keep in itertools.product([0, 1], repeat=len(v)):
        kept = v * np.array(keep)
        length = np.linalg.norm(kept)
        if length > group:
            found.append(kept * (1 - group / length))

    def cost(x: Row) -> float:
        return ((x - v) ** 2).sum() / 2 + entry * np.count_nonzero(x) + group * np.linalg.norm(x)

    return min(found, key=cost)


def group_exclusive(v: Row, group: float, rival: float, d: Row) -> Row:
    """Brent's method on the l1 norm of the result, bisection within it on its Euclidean norm."""
    from scipy.optimize import brentq

    if group == rival == 0:
        return v.copy()

    def within(total: float) -> Row:
        return group_l2(soft(v, rival * total / d), group, d)

    return within(
        brentq(lambda total: np.abs(within(total)).sum() - total, 0.0, np.abs(v).sum(), xtol=1e-300, rtol=1e-15)
    )


def prox(penalty, v: Row, t: float, d: Row | None = None) -> Row:
    """argmin_x 1/2 sum d (x - v)² + t R(x) of one row."""
    d = np.ones_like(v) if d is None else d
    if type(penalty).__name__ != "GroupMCP" and entry_cost(penalty):
        sizes = [best_size(penalty, a, s) for a, s in zip(np.abs(v), t / d, strict=True)]
        return np.sign(v) * np.array(sizes)
    weight = np.sqrt(len(v)) if getattr(penalty, "sqrt_size", False) else 1.0
    ratio = getattr(penalty, "ratio", None)
    match type(penalty).__name__:
        case "L1":
            return soft(v, t / d)
        case "NonnegativeL1":
            return np.maximum(v - t / d, 0)
        case "ElasticNet":
            return soft(v, ratio * t / d) / (1 + (1 - ratio) * t / d)
        case "Ridge":
            return v / (1 + t / d)
        case "L0":
            return np.where(d * v**2 / 2 > t, v, 0)
        case "Box":
            return np.minimum(np.maximum(v, penalty.low), penalty.high)
        case "Nonnegative":
            return np.maximum(v, 0)
        case "Simplex":
            return simplex(v, d, penalty.radius)
        case "L1Ball":
            return l1_ball(v, d, penalty.radius)
        case "LInf":
            return l_inf(v, t, d)
        case "GroupL2":
            return group_l2(v, weight * t, d)
        case "GroupL0":
            return v if (d * v**2).sum() / 2 > t else np.zeros_like(v)
        case "SparseGroup":
            return group_l2(soft(v, ratio * t / d), (1 - ratio) * weight * t, d)
        case "Exclusive":
            return exclusive(v, t, d)
        case "GroupMCP":
            length = np.linalg.norm(v)
            return v * (best_size(penalty, length, t) / length) if length else v
        case "L1MinusL2":
            return v if t == 0 else l1_minus_l2(v, t, penalty.alpha)
        case "SparseGroupL0":
            return v if t == 0 else sparse_group_l0(v, t * ratio, t * (1 - ratio) * weight)
        case "GroupExclusive":
            return group_exclusive(v, t * (1 - penalty.mu) * weight, t * penalty.mu, d)
        case "Grouped":
            blocks = zip(np.split(v, len(v) // penalty.size), np.split(d, len(v) // penalty.size), strict=True)
            return np.concatenate([prox(penalty.penalty, part, t, within) for part, within in blocks])
    raise KeyError(f"no twin for {penalty!r}: add one")


def value(penalty, v: Row) -> float:
    """R of one row."""
    weight = np.sqrt(len(v)) if getattr(penalty, "sqrt_size", False) else 1.0
    ratio = getattr(penalty, "ratio", None)
    slack = 1e-9
    if type(penalty).__name__ == "GroupMCP":
        return float(entry_cost(penalty)[0](np.linalg.norm(v)))
    if entry_cost(penalty):
        return float(entry_cost(penalty)[0](np.abs(v)).sum())
    match type(penalty).__name__:
        case "L1":
            return np.abs(v).sum()
        case "NonnegativeL1":
            return v.sum() if v.min() >= -slack else np.inf
        case "ElasticNet":
            return ratio * np.abs(v).sum() + (1 - ratio) / 2 * (v**2).sum()
        case "Ridge":
            return (v**2).sum() / 2
        case "L0":
            return float(np.count_nonzero(v))
        case "Box":
            return 0.0 if v.min() >= penalty.low - slack and v.max() <= penalty.high + slack else np.inf
        case "Nonnegative":
            return 0.0 if v.min() >= -slack else np.inf
        case "Simplex":
            return 0.0 if v.min() >= -slack and abs(v.sum() - penalty.radius) <= slack else np.inf
        case "L1Ball":
            return 0.0 if np.abs(v).sum() <= penalty.radius + slack else np.inf
        case "LInf":
            return np.abs(v).max()
        case "GroupL2":
            return weight * np.linalg.norm(v)
        case "GroupL0":
            return float(np.any(v != 0))
        case "SparseGroup":
            return ratio * np.abs(v).sum() + (1 - ratio) * weight * np.linalg.norm(v)
        case "Exclusive":
            return np.abs(v).sum() ** 2 / 2
        case "L1MinusL2":
            return np.abs(v).sum() - penalty.alpha * np.linalg.norm(v)
        case "SparseGroupL0":
            return ratio * np.count_nonzero(v) + (1 - ratio) * weight * np.linalg.norm(v)
        case "GroupExclusive":
            return (1 - penalty.mu) * weight * np.linalg.norm(v) + penalty.mu / 2 * np.abs(v).sum() ** 2
        case "Grouped":
            return sum(value(penalty.penalty, part) for part in np.split(v, len(v) // penalty.size))
    raise KeyError(f"no value for {penalty!r}: add one")


def objective(penalty, x: Row, v: Row, t: float, d: Row) -> float:
    infinite = value(penalty, x)
    return (d * (x - v) ** 2).sum() / 2 + (t * infinite if np.isfinite(infinite) else infinite)


def global_best(penalty, v: Row, t: float, d: Row, rng: np.random.Generator) -> float:
    """The least objective over a search of the whole space: a grid, every support of v, the feasible points, random rays."""
    span = np.abs(v).max() + 1
    axis = np.unique(np.concatenate([np.linspace(-span, span, 31), [0.0]]))
    points = [np.array(p) for p in itertools.product(axis, repeat=len(v))] if len(v) == 2 else []
    shrunk = [v * s for s in np.linspace(0, 1, 21)]
    points += [x * np.array(keep) for x in shrunk for keep in itertools.product([0, 1], repeat=len(v))]
    points += [soft(v, s) for s in np.linspace(0, span, 101)]
    points += [np.sign(v) * np.minimum(np.abs(v), s) for s in np.linspace(0, span, 101)]
    points += [v * rng.uniform(0, 1, len(v)) for _ in range(300)]
    if penalty.indicator:
        points = [p for p in points if np.any(p)]
        radius = getattr(penalty, "radius", 1.0)
        points = [f(p) for p in points for f in (np.abs, np.copy, lambda p: p / (np.abs(p).sum() / radius))]
        points += [np.abs(p) for p in points]
    if type(penalty).__name__ == "NonnegativeL1":
        points += [np.abs(p) for p in points]
    return min(objective(penalty, p, v, t, d) for p in points)


def sorted_waterline(u: Row, a: Row, b: float, c: float) -> float:
    """tau* = max over the prefixes S of the sorted row of (sum_S a u - b) / (sum_S a + c), in long double."""
    u, a = u.astype(np.longdouble), a.astype(np.longdouble)
    order = np.argsort(-u)
    mass, area = np.cumsum(a[order]), np.cumsum((a * u)[order])
    return np.max((area - b) / (mass + c))


def entmax15(z: Row) -> Row:
    s = z.astype(np.float64) / 2
    level = bisect(lambda tau: (np.maximum(s - tau, 0) ** 2).sum() - 1, s.max() - 1, s.max())
    return np.maximum(s - level, 0) ** 2
