"""Fenchel-Young losses as modules, in the manner of torch.nn.CrossEntropyLoss: SparsemaxLoss and Entmax15Loss."""

from __future__ import annotations

from torch import Tensor, nn

from .losses import check_options, entmax15_loss, sparsemax_loss


class _ClassLoss(nn.Module):
    """The options of a loss on classes; `weight` is a buffer."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_options(reduction, weight, label_smoothing)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def extra_repr(self) -> str:
        weighted = "" if self.weight is None else f"weight={tuple(self.weight.shape)}, "
        return (
            f"{weighted}ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )


class SparsemaxLoss(_ClassLoss):
    r"""`sparsemax_loss` as a module: max over p in the simplex of <p - y, z> - 1/2 ‖p‖² + 1/2 ‖y‖², with classes on axis 1.

    Args, in the order of `torch.nn.CrossEntropyLoss`:
        weight: (C,), a weight for each class; a buffer.
        ignore_index: class index of the rows that do not count.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].

    Shape: logits (C,), (N, C) or (N, C, d1, ...); target int64 (), (N,), (N, d1, ...), or probabilities like the logits.

    Raises: ValueError for an unknown reduction or label_smoothing outside [0, 1]; TypeError for a weight that is no floating
        point tensor.

    Source: Martins and Astudillo, ICML 2016, section 3.3.

    When not to use: where calibrated probabilities of unlikely classes matter.

    >>> import torch, sparselayers as sl
    >>> criterion = sl.SparsemaxLoss()
    >>> criterion(torch.tensor([[0.5, 1.2, 0.1], [0.5, 1.2, 0.1]]), torch.tensor([1, 0]))
    tensor(0.3725)
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return sparsemax_loss(logits, target, self.ignore_index, self.reduction, self.weight, self.label_smoothing)


class Entmax15Loss(_ClassLoss):
    r"""`entmax15_loss` as a module: max over p in the simplex of <p - y, z> + H(p) - H(y), with classes on axis 1.

    H(p) = 4/3 sum (p - p^1.5).

    Args, Shape, Raises: as `SparsemaxLoss`.

    Source: Peters, Niculae and Martins, ACL 2019, section 3.

    When not to use: where calibrated probabilities of unlikely classes matter.

    >>> import torch, sparselayers as sl
    >>> criterion = sl.Entmax15Loss()
    >>> criterion(torch.tensor([[0.5, 1.2, 0.1], [0.5, 1.2, 0.1]]), torch.tensor([1, 0]))
    tensor(0.4929)
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return entmax15_loss(logits, target, self.ignore_index, self.reduction, self.weight, self.label_smoothing)
