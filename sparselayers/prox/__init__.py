"""Floor 1: penalties, each with its value, its exact prox and its lam_max."""

from .base import Grouped, Penalty
from .group import Exclusive, GroupL0, GroupL2, LInf, SparseGroup
from .separable import L0, L1, ElasticNet, NonnegativeL1, Ridge
from .sets import Box, L1Ball, Nonnegative, Simplex

__all__ = [
    "L0",
    "L1",
    "Box",
    "ElasticNet",
    "Exclusive",
    "GroupL0",
    "GroupL2",
    "Grouped",
    "L1Ball",
    "LInf",
    "Nonnegative",
    "NonnegativeL1",
    "Penalty",
    "Ridge",
    "Simplex",
    "SparseGroup",
]
