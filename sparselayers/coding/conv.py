"""Convolutional sparse coding as layers: `ConvISTA` and `ConvFISTA`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ..ops import checks
from ..ops.norm import upcast
from ..prox import L1, Penalty
from ..proxgrad import Restart
from ..schedules import Homotopy, Schedule
from . import dictionary as atoms
from .dictionaries import Conv
from .ista import Shrink
from .unrolled_layer import Unrolled


class _ConvUnrolled(Unrolled):
    """What ConvISTA and ConvFISTA share: everything but the momentum."""

    def __init__(
        self,
        in_channels: int,
        n_atoms: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...],
        padding: int | tuple[int, ...],
        depth: int,
        lam: float | Tensor,
        penalty: Penalty,
        shrink: Shrink | None,
        schedule: Schedule,
        step: float | Tensor | None,
        dictionary: Tensor | None,
        learn: Sequence[str],
        momentum: bool,
        restart: Restart,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        checks.count(in_channels, "in_channels")
        checks.count(n_atoms, "n_atoms")
        dims = len(kernel_size) if isinstance(kernel_size, (tuple, list)) else 2
        if dims not in (1, 2):
            raise ValueError(f"kernel_size must be an int or a tuple of 1 (signals) or 2 (images), got {kernel_size!r}")
        kernel = _each(kernel_size, "kernel_size", dims, 1)
        strides, paddings = _each(stride, "stride", dims, 1), _each(padding, "padding", dims, 0)
        super().__init__(
            n_atoms,
            depth=depth,
            lam=lam,
            penalty=penalty,
            shrink=shrink,
            schedule=schedule,
            step=step,
            learn=learn,
            momentum=momentum,
            restart=restart,
        )
        self.in_channels, self.kernel_size, self.stride, self.padding = in_channels, kernel, strides, paddings
        shape, axes = (n_atoms, in_channels, *kernel), "(n_atoms, in_channels, *kernel_size)"
        D = atoms.hold_shape(self, shape, axes, dictionary, "dictionary" in learn, device, dtype)
        self._hold_strengths(lam, step, D, lambda D: Conv(D, strides, paddings, kernel).safe_step())

    @overload
    def forward(self, x: Tensor, trace: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, trace: Literal[True]) -> tuple[Tensor, list[Tensor]]: ...
    def forward(self, x: Tensor, trace: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """x ([batch,] in_channels, *size) -> z ([batch,] n_atoms, *code_size); with `trace` also z_1 .. z_depth."""
        checks.floating(x, "x")
        dims = len(self.kernel_size)
        found = self._unrolled(upcast(x), self._dictionary(tuple(x.shape[-dims:])), trace)
        z = found.z.movedim(-1, -dims - 1).to(x.dtype)
        return (z, [each.movedim(-1, -dims - 1).to(x.dtype) for each in found.trace]) if trace else z

    def _dictionary(self, size: tuple[int, ...]) -> Conv:
        return Conv(upcast(self.dictionary), self.stride, self.padding, size)

    def decode(self, z: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The signal of a code: z (..., n_atoms, *code size) -> D z (..., in_channels, *output_size).

        With a stride above 1 several signal sizes share one code size: `output_size` says which (x.shape will do); None
        is the smallest.
        """
        checks.floating(z, "z")
        dims = len(self.kernel_size)
        if z.ndim not in (dims + 1, dims + 2) or z.shape[-dims - 1] != self.n_atoms:
            raise ValueError(
                f"z must be ([batch,] {self.n_atoms}, {'length' if dims == 1 else 'height, width'}), got {tuple(z.shape)}"
            )
        axes = list(zip(z.shape[-dims:], self.kernel_size, self.stride, self.padding, strict=True))
        smallest = tuple((n - 1) * s - 2 * p + k for n, k, s, p in axes)
        size = smallest if output_size is None else tuple(output_size)[-dims:]
        if len(size) != dims or not all(0 <= n - m < s for n, m, s in zip(size, smallest, self.stride, strict=True)):
            largest = tuple(m + s - 1 for m, s in zip(smallest, self.stride, strict=True))
            raise ValueError(
                f"output_size must lie between {smallest} and {largest} for z of shape {tuple(z.shape)}, "
                f"got {tuple(output_size or size)}; use the shape of the x that was coded"
            )
        return self._dictionary(size).decode(upcast(z)).to(z.dtype)

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.n_atoms}, kernel_size={self.kernel_size}"
        return f"{shape}, stride={self.stride}, padding={self.padding}, {super().extra_repr()}"


def _each(value: int | tuple[int, ...], name: str, dims: int, least: int) -> tuple[int, ...]:
    """One number an axis."""
    if not isinstance(value, (int, tuple, list)):
        remedy = "; 'same' is kernel_size // 2" if value == "same" else ""
        raise TypeError(f"{name} must be an int or a tuple of {dims}, got {value!r}{remedy}")
    found = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(found) != dims:
        raise ValueError(f"{name} must be an int or a tuple of {dims}, as kernel_size, got {value!r}")
    for each in found:
        checks.count(each, name, least)
    return found


class ConvISTA(_ConvUnrolled):
    r"""Convolutional sparse coding by `depth` steps of ISTA: `ISTA` for signals and images, with filters as atoms.

    argmin_z  1/2 ‖x - D z‖² + lam R(z),   D z = conv_transpose(z, dictionary),   D^T x = conv(x, dictionary)

    by  z_k = prox_{step lam_k R}(z_{k-1} + step D^T (x - D z_{k-1})),  z_0 = 0. A sample's code is one vector over all
    positions: its lam_max is the largest over them. R is summed over positions and works along the atoms at each of
    them, so that `Grouped(GroupL2(), 4)` makes groups of 4 atoms at a position.

    Args:
        in_channels: channels of x.
        n_atoms: number of filters: the channels of z.
        kernel_size: (length,) for signals, (height, width) for images; an int is a square.
        stride: distance of neighbouring positions, an int or one an axis.
        padding: zeros laid round x, as in torch.nn.Conv2d; kernel_size // 2 of an odd kernel keeps the size at stride 1.
        depth: number of steps.
        lam: strength: a number, or a tensor (), (n_atoms,) one an atom, or (batch, 1) one a sample.
        penalty, shrink, schedule, learn: as for `ISTA`.
        step: step size; None is 1 / an upper bound of ‖D‖² that holds for every input size, about 2 % an axis above it.
            With many channels (64 of 3 x 3, say) the bound is an estimate raised by 10 %.
        dictionary: the initial filters (n_atoms, in_channels, *kernel_size), copied; Gaussian, of unit norm, if None.
        device, dtype: of the dictionary.

    Shape: x ([batch,] in_channels, *size) -> z ([batch,] n_atoms, *code_size), code_size = (size + 2 padding -
    kernel_size) // stride + 1. decode(z, x.shape) gives the size of x back.

    Raises: TypeError and ValueError at construction and on shapes, with the remedy.

    Source: Zeiler, Krishnan, Taylor and Fergus 2010; Bristow, Eriksson and Lucey 2013 (convolutional sparse coding).

    When not to use: for patches that are coded on their own, which `ISTA` does; n_atoms / (in_channels * stride²) is
    how overcomplete the code of an image is, and at stride 1 it is large.

    >>> import torch, sparselayers as sl
    >>> layer = sl.ConvISTA(1, 1, (1,), depth=4, lam=0.5, dictionary=torch.ones(1, 1, 1))
    >>> layer(torch.tensor([[1.0, -0.2, -2.0]])).detach()
    tensor([[ 0.5000,  0.0000, -1.5000]])
    """

    def __init__(
        self,
        in_channels: int,
        n_atoms: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        depth: int,
        lam: float | Tensor = 0.1,
        penalty: Penalty = L1(),  # noqa: B008 - a frozen dataclass
        shrink: Shrink | None = None,
        schedule: Schedule = Homotopy(),  # noqa: B008
        step: float | Tensor | None = None,
        dictionary: Tensor | None = None,
        learn: Sequence[str] = ("dictionary",),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            n_atoms,
            kernel_size,
            stride=stride,
            padding=padding,
            depth=depth,
            lam=lam,
            penalty=penalty,
            shrink=shrink,
            schedule=schedule,
            step=step,
            dictionary=dictionary,
            learn=learn,
            momentum=False,
            restart=None,
            device=device,
            dtype=dtype,
        )


class ConvFISTA(_ConvUnrolled):
    r"""Convolutional sparse coding by `depth` steps of FISTA: `ConvISTA` with momentum, restarted sample by sample.

    argmin_z  1/2 ‖x - D z‖² + lam R(z),   D z = conv_transpose(z, dictionary).

    Args: as for `ConvISTA`, and
        restart: "sample" drops a sample's momentum when it points uphill, over all its positions; None is the plain
            FISTA.

    Shape: x ([batch,] in_channels, *size) -> z ([batch,] n_atoms, *code_size).

    Raises: TypeError and ValueError at construction and on shapes, with the remedy.

    Source: Beck and Teboulle 2009, section 4; O'Donoghue and Candes 2015 (gradient restart), here per sample.

    When not to use: with a shrinkage that expands (SigShrink with tau lam > 2).

    >>> import torch, sparselayers as sl
    >>> layer = sl.ConvFISTA(1, 1, (1,), depth=4, lam=0.5, dictionary=torch.ones(1, 1, 1))
    >>> layer(torch.tensor([[1.0, -0.2, -2.0]])).detach()
    tensor([[ 0.5000,  0.0000, -1.5000]])
    """

    def __init__(
        self,
        in_channels: int,
        n_atoms: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        depth: int,
        lam: float | Tensor = 0.1,
        penalty: Penalty = L1(),  # noqa: B008
        shrink: Shrink | None = None,
        schedule: Schedule = Homotopy(),  # noqa: B008
        step: float | Tensor | None = None,
        dictionary: Tensor | None = None,
        learn: Sequence[str] = ("dictionary",),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        restart: Restart = "sample",
    ) -> None:
        super().__init__(
            in_channels,
            n_atoms,
            kernel_size,
            stride=stride,
            padding=padding,
            depth=depth,
            lam=lam,
            penalty=penalty,
            shrink=shrink,
            schedule=schedule,
            step=step,
            dictionary=dictionary,
            learn=learn,
            momentum=True,
            restart=restart,
            device=device,
            dtype=dtype,
        )
