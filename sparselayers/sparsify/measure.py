"""What a model costs: parameters, operations, bytes and time, before and after it was made smaller."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from ..ops import checks
from ..ops.kernels.switch import kernels
from .evaluation import Example, call, check_example, evaluating
from .timing import Latency, plain, rows_of, timed


@dataclass(frozen=True)
class Measurement:
    """What a model costs; prints as a table.

    parameters: entries of all parameters, a tied one counted once; parameters_nonzero: those that are not 0. flops: two for
    each multiplication in matrix products, convolutions and attention of one forward pass of the example. bytes: of the
    tensors of the state_dict, each once. latencies: one a batch size.
    """

    parameters: int
    parameters_nonzero: int
    flops: int
    bytes: int
    latencies: tuple[Latency, ...]

    def __str__(self) -> str:
        rows = [(name, f"{value:,}") for name, value in _counts(self)]
        rows += [(f"{_batch(at)}, ms", f"{at.median:.3f} (fastest {at.fastest:.3f})") for at in self.latencies]
        return _table([("", "model"), *rows])


@dataclass(frozen=True)
class Comparison:
    """Two models on the same example; prints as a table.

    before, after: a Measurement each, timed in turns. largest_difference: of their outputs on the example, absolute;
    largest_output: the size of the largest output of the first, to compare it with.
    """

    before: Measurement
    after: Measurement
    largest_difference: float
    largest_output: float

    def speedup(self) -> tuple[float, ...]:
        """Median time before over median time after, one a batch size."""
        pairs = zip(self.before.latencies, self.after.latencies, strict=True)
        return tuple(one.median / other.median for one, other in pairs)

    def __str__(self) -> str:
        counts = zip(_counts(self.before), _counts(self.after), strict=True)
        rows = [(name, f"{old:,}", f"{new:,}", _ratio(old, new)) for (name, old), (_, new) in counts]
        for old, new in zip(self.before.latencies, self.after.latencies, strict=True):
            ratio = _ratio(old.median, new.median)
            rows.append((f"{_batch(old)}, ms", f"{old.median:.3f}", f"{new.median:.3f}", ratio))
        last = (
            f"largest difference of outputs: {self.largest_difference:.2g} (largest output {self.largest_output:.2g})"
        )
        return _table([("", "before", "after", "ratio"), *rows]) + f"\n{last}"


def measure(
    model: nn.Module, example_input: Example, *, batch_sizes: Sequence[int] | None = None, repeats: int = 20
) -> Measurement:
    r"""Count a model's parameters, operations and bytes, and time its forward pass.

    Args:
        model: any nn.Module; it runs in evaluation mode without gradients, and gets its own mode back.
        example_input: a tensor, a tuple of arguments or a dict of named ones, on the device of the model.
        batch_sizes: sizes to time at; the rows of the example are repeated as often as needed, in every tensor whose first
            axis is as long as that of the first tensor. None: the size of the example.
        repeats: timed passes a batch size, after some that are not timed. On a CUDA device the clock is the device's.

    Returns: a frozen Measurement (parameters, parameters_nonzero, flops, bytes, latencies), which prints as a table.

    Raises: TypeError for what is no module and for another kind of example; ValueError for counts below 1 and an example
        without a tensor.

    When not to use: to compare two models: the machine is not equally busy at both times; `compare` times them in turns.

    >>> import torch, sparselayers as sl
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> found = sl.measure(model, torch.ones(1, 3), batch_sizes=(1, 16), repeats=3)
    >>> found.parameters, found.flops, found.bytes, [at.batch_size for at in found.latencies]
    (32, 50, 128, [1, 16])
    """
    sizes = _check([model], example_input, batch_sizes, repeats)
    (latencies,) = timed([model], example_input, sizes, repeats)
    return _measurement(model, example_input, latencies)


def compare(
    before: nn.Module,
    after: nn.Module,
    example_input: Example,
    *,
    batch_sizes: Sequence[int] | None = None,
    repeats: int = 20,
) -> Comparison:
    r"""Measure two models on one example, timed in turns, and how far apart their outputs are.

    Args:
        before, after: two nn.Modules that take the same arguments, such as a model and what `compact` made of it.
        example_input, batch_sizes, repeats: as for `measure`.

    Returns: a frozen Comparison (before, after, largest_difference, largest_output, speedup()), which prints as a table.

    Raises: as `measure`; ValueError where the outputs differ in number or shape.

    When not to use: for the time of training steps: only the forward pass without gradients is timed.

    >>> import torch, sparselayers as sl
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> compared = sl.compare(model, model, torch.ones(1, 3), repeats=3)
    >>> compared.largest_difference, compared.after.parameters, len(compared.speedup())
    (0.0, 32, 1)
    """
    sizes = _check([before, after], example_input, batch_sizes, repeats)
    difference, largest = _difference(before, after, example_input)
    first, second = timed([before, after], example_input, sizes, repeats)
    return Comparison(
        _measurement(before, example_input, first), _measurement(after, example_input, second), difference, largest
    )


def _check(
    models: Iterable[nn.Module], example_input: Example, batch_sizes: Sequence[int] | None, repeats: int
) -> Sequence[int]:
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    check_example(example_input)
    checks.count(repeats, "repeats")
    rows = rows_of(example_input)
    if not rows:
        raise ValueError("example_input must hold a tensor with rows along its first axis, one an example")
    if batch_sizes is None:
        return (rows,)
    if isinstance(batch_sizes, int) or not isinstance(batch_sizes, Sequence):
        raise TypeError(f"batch_sizes must be a sequence of ints such as (1, 256), got {batch_sizes!r}")
    for size in batch_sizes:
        checks.count(size, "each of batch_sizes")
    return batch_sizes


def _measurement(model: nn.Module, example_input: Example, latencies: tuple[Latency, ...]) -> Measurement:
    parameters = list(model.parameters())
    held = {x.data_ptr(): x.numel() * x.element_size() for x in model.state_dict().values() if isinstance(x, Tensor)}
    return Measurement(
        sum(p.numel() for p in parameters),
        sum(int(torch.count_nonzero(p.detach())) for p in parameters),
        _flops(model, example_input),
        sum(held.values()),
        latencies,
    )


def _flops(model: nn.Module, example_input: Example) -> int:
    """Counted operation by operation. Fused attention counts as what it stands for, so it is taken apart here."""
    from torch.utils.flop_counter import FlopCounterMode  # it imports triton, where there is one

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), evaluating(model), kernels(False), sdpa_kernel(SDPBackend.MATH), counter:
            call(model, copy.deepcopy(example_input))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def _difference(before: nn.Module, after: nn.Module, example_input: Example) -> tuple[float, float]:
    outputs = []
    for model in (before, after):
        with torch.inference_mode(), evaluating(model):
            leaves = tree_leaves(plain(call(model, copy.deepcopy(example_input))))
        outputs.append([leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()])
    shapes = [[tuple(x.shape) for x in leaves] for leaves in outputs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs must have equal shapes to be compared, got {shapes[0]} before and {shapes[1]} after")
    pairs = list(zip(*outputs, strict=True))
    difference = max((_largest(one.double() - other.double()) for one, other in pairs), default=0.0)
    return difference, max((_largest(one) for one, _ in pairs), default=0.0)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _counts(found: Measurement) -> list[tuple[str, int]]:
    names = ("parameters", "parameters_nonzero", "flops", "bytes")
    return [(name.replace("_", ", "), getattr(found, name)) for name in names]


def _batch(at: Latency) -> str:
    return f"batch {at.batch_size}"


def _ratio(one: float, other: float) -> str:
    return f"{one / other:.2f}" if other else "-"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        lines.append("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
