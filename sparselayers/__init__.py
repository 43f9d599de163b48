"""sparselayers: one prox core behind sparse codes, sparse attention and sparse weights."""

from . import functional
from .attention.multihead import MultiheadAttention
from .attention.scale_free_layer import ScaleFreeAttention
from .attention.sparse_attention import SparseAttention
from .attention.swap import restore_attention, swap_attention
from .coding.conv import ConvFISTA, ConvISTA
from .coding.layers import FISTA, ISTA
from .coding.lista import LISTA
from .coding.sparse_coder import SparseCoder
from .coding.support_selection import SupportSelection
from .coding.unit_norm import UnitNorm, unit_norm
from .mappings.entmax import Entmax
from .mappings.loss_modules import Entmax15Loss, SparsemaxLoss
from .mappings.shrinkage import SigShrink, SoftThreshold
from .mappings.simplex import Entmax15, Sparsemax
from .ops.kernels.switch import kernels
from .prox import (
    L0,
    L1,
    MCP,
    SCAD,
    Box,
    ElasticNet,
    Exclusive,
    Grouped,
    GroupExclusive,
    GroupHoyerSquare,
    GroupL0,
    GroupL2,
    GroupMCP,
    HoyerSquare,
    L1Ball,
    L1MinusL2,
    LatentGroupL2,
    LHalf,
    LInf,
    LogSum,
    Nonnegative,
    NonnegativeL1,
    Penalty,
    Ridge,
    Simplex,
    SparseGroup,
    SparseGroupL0,
    TransformedL1,
)
from .schedules import Constant, Homotopy
from .sparsify.compact import compact
from .sparsify.density import DensityTarget
from .sparsify.gates import HardConcrete
from .sparsify.heads import Heads
from .sparsify.load_compact import load_compact
from .sparsify.measure import Comparison, Measurement, compare, measure
from .sparsify.neuron import Neurons
from .sparsify.optim import ProxAdamW, ProxSGD
from .sparsify.regularizer import Regularizer
from .sparsify.report import SparsityReport, sparsity_report
from .sparsify.splitting import PenaltyDecomposition
from .sparsify.strength import LamSchedule, lam_path

__version__ = "0.1.0"

__all__ = [
    "GroupExclusive",
    "GroupHoyerSquare",
    "GroupMCP",
    "HoyerSquare",
    "L1MinusL2",
    "LHalf",
    "LogSum",
    "MCP",
    "SCAD",
    "SparseGroupL0",
    "TransformedL1",
    "FISTA",
    "ISTA",
    "L0",
    "L1",
    "LISTA",
    "Box",
    "Comparison",
    "Constant",
    "ConvFISTA",
    "ConvISTA",
    "DensityTarget",
    "ElasticNet",
    "Entmax",
    "Entmax15",
    "Entmax15Loss",
    "Exclusive",
    "GroupL0",
    "GroupL2",
    "Grouped",
    "Heads",
    "Neurons",
    "HardConcrete",
    "Homotopy",
    "L1Ball",
    "LamSchedule",
    "LInf",
    "LatentGroupL2",
    "Measurement",
    "MultiheadAttention",
    "Nonnegative",
    "NonnegativeL1",
    "Penalty",
    "PenaltyDecomposition",
    "ProxAdamW",
    "ProxSGD",
    "Regularizer",
    "Ridge",
    "ScaleFreeAttention",
    "SigShrink",
    "Simplex",
    "SoftThreshold",
    "SparseAttention",
    "SparseCoder",
    "SparseGroup",
    "Sparsemax",
    "SparsemaxLoss",
    "SparsityReport",
    "SupportSelection",
    "UnitNorm",
    "compact",
    "compare",
    "functional",
    "kernels",
    "lam_path",
    "load_compact",
    "measure",
    "restore_attention",
    "sparsity_report",
    "swap_attention",
    "unit_norm",
]
