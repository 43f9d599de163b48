"""Dictionaries as objects: what `unrolled` asks of D, and the two there are, a matrix and a convolution.

Inside the loop a code is (..., *positions, n_atoms): penalties work along the last axis, a sample is that axis together
with its positions. A matrix has no positions; a convolution has one a place where its filters are laid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..ops import checks
from ..ops.conv_norm import conv_squared_norm
from . import dictionary

CONV = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}
TRANSPOSED = {1: torch.nn.functional.conv_transpose1d, 2: torch.nn.functional.conv_transpose2d}


class Dictionary(Protocol):
    """What `unrolled` asks of a dictionary."""

    @property
    def n_atoms(self) -> int: ...

    @property
    def positions(self) -> int:
        """How many axes of a code, before the last, belong to one sample."""

    def check(self, x: Tensor) -> None:
        """TypeError or ValueError unless x can be coded."""

    def per_code(self, strength: float | Tensor, x: Tensor, name: str) -> float | Tensor:
        """A strength of shape (), (n_atoms,) or (..., 1), made to broadcast to the code of x."""

    def zeros(self, x: Tensor) -> Tensor:
        """The zero code of x."""

    def correlation(self, x: Tensor) -> Tensor:
        """D^T x."""

    def gradient(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """z -> D^T (D z - x)."""

    def safe_step(self) -> Tensor:
        """1 / ‖D‖² or a little less, through which the gradient flows."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix D (n_features, n_atoms): x (..., n_features), code (..., n_atoms)."""

    D: Tensor

    @property
    def n_atoms(self) -> int:
        return self.D.shape[1]

    @property
    def positions(self) -> int:
        return 0

    def check(self, x: Tensor) -> None:
        dictionary.check(x, self.D)

    def per_code(self, strength: float | Tensor, x: Tensor, name: str) -> float | Tensor:
        return strength

    def zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.D.shape[1])

    def correlation(self, x: Tensor) -> Tensor:
        return x @ self.D

    def gradient(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return dictionary.gradient(x, self.D)

    def safe_step(self) -> Tensor:
        return dictionary.safe_step(self.D)


@dataclass(frozen=True, eq=False)
class Conv:
    r"""A convolution in one or two dimensions: D z = conv_transpose(z, weight), D^T x = conv(x, weight), exactly adjoint.

    `decode` and `adjoint` take and give channels first, as torch does, batched or not; the rest is for the loop, with
    the atoms last.

    Args:
        weight: (n_atoms, channels, *kernel), a filter an atom.
        stride, padding: one number an axis of the kernel. D z is what is left of the full sum of shifted filters after
            `padding` is cut off each side.
        size: the spatial size of x. With a stride several sizes share one code size, so D must be told.
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def n_atoms(self) -> int:
        return self.weight.shape[0]

    @property
    def positions(self) -> int:
        return self.weight.ndim - 2

    @property
    def code_size(self) -> tuple[int, ...]:
        """The spatial size of a code."""
        axes = zip(self.size, self.weight.shape[2:], self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)

    def check(self, x: Tensor) -> None:
        channels, kernel = self.weight.shape[1], tuple(self.weight.shape[2:])
        dims = len(kernel)
        checks.floating(x, "x")
        if x.ndim not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels:
            axes = ", ".join(("length",) if dims == 1 else ("height", "width"))
            raise ValueError(
                f"x must be ({channels}, {axes}) or (batch, {channels}, {axes}), channels first, got {tuple(x.shape)}"
                + ("; use x.unsqueeze(-3)" if dims == 2 and channels == 1 and x.ndim in (2, 3) else "")
            )
        if min(self.code_size) < 1:
            raise ValueError(
                f"kernel {kernel} does not fit into x of spatial size {self.size} with padding {self.padding}; "
                f"raise padding or use a smaller kernel_size"
            )
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"x and the dictionary must have one dtype, got {x.dtype} and {self.weight.dtype}; "
                f"use x.to({self.weight.dtype})"
            )

    def per_code(self, strength: float | Tensor, x: Tensor, name: str) -> float | Tensor:
        if not isinstance(strength, Tensor) or strength.ndim <= 1:
            return strength
        if strength.ndim - 1 > x.ndim - self.positions - 1:
            raise ValueError(
                f"{name} must be a number, (), ({self.n_atoms},) one an atom or (batch, 1) one a sample for x of shape "
                f"{tuple(x.shape)}, got {tuple(strength.shape)}; use {name}.flatten() for one an atom"
            )
        return strength.reshape(*strength.shape[:-1], *(1,) * self.positions, strength.shape[-1])

    def zeros(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - self.positions - 1]
        return x.new_zeros(*batch, self.n_atoms, *self.code_size).movedim(-self.positions - 1, -1)

    def correlation(self, x: Tensor) -> Tensor:
        return self.adjoint(x).movedim(-self.positions - 1, -1)

    def gradient(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: self.correlation(self.decode(z.movedim(-1, -self.positions - 1)) - x)

    def safe_step(self) -> Tensor:
        bound = conv_squared_norm(self.weight, self.stride)
        return 1 / torch.where(bound > 0, bound, 1)

    def decode(self, z: Tensor) -> Tensor:
        """D z: (..., n_atoms, *code_size) -> (..., channels, *size)."""
        shape = zip(self.size, self.weight.shape[2:], self.stride, self.padding, strict=True)
        left_over = tuple((n + 2 * p - k) % s for n, k, s, p in shape)
        return TRANSPOSED[self.positions](
            z, self.weight, stride=self.stride, padding=self.padding, output_padding=left_over
        )

    def adjoint(self, x: Tensor) -> Tensor:
        """D^T x: (..., channels, *size) -> (..., n_atoms, *code_size)."""
        return CONV[self.positions](x, self.weight, stride=self.stride, padding=self.padding)
