"""What works on this machine, by small self-checks with known answers, and how to get what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

import sparselayers as sl
import sparselayers.functional as F
from sparselayers.ops.kernels.switch import serve

State = Literal["ok", "missing", "failed", "info"]

# (import name, name on the package index, what it is for, remedy)
EXTRAS = (
    ("scipy", "scipy", "reference solvers", "pip install scipy"),
    ("entmax", "entmax", "a peer to compare with", "pip install entmax"),
    ("matplotlib", "matplotlib", "sparselayers.plotting", "pip install matplotlib"),
    ("sklearn", "scikit-learn", "the data of the demo", "pip install 'sparselayers[demo]'"),
    ("tqdm", "tqdm", "the progress bars of the demo", "pip install 'sparselayers[demo]'"),
    ("numba", "numba", "CPU kernels", "pip install 'sparselayers[fast]'"),
    ("triton", "triton", "CUDA kernels", "comes with torch for CUDA"),
    (
        "transformers",
        "transformers",
        "sparselayers.integrations.transformers",
        "pip install 'sparselayers[transformers]'",
    ),
    ("torch_pruning", "torch-pruning", "compact() where torch.fx cannot follow", "pip install 'sparselayers[prune]'"),
)


@dataclass(frozen=True)
class Check:
    """One line of the table; where a core check is "failed" the library does not work here."""

    name: str
    state: State
    detail: str
    remedy: str = ""
    core: bool = False


def diagnose(fast: bool = False) -> list[Check]:
    """All checks, in the order of the table; `fast` leaves out torch.compile, which takes some seconds to try."""
    return [*_machine(), *_operators(), _kernels("cpu"), _kernels("cuda"), _compiler(fast), *_extras()]


def run(fast: bool = False) -> int:
    """Print the table; 0 where every core check passes, else 1."""
    checks = diagnose(fast)
    widths = [max(len(getattr(check, field)) for check in checks) for field in ("name", "state", "detail")]
    for check in checks:
        cells = (check.name.ljust(widths[0]), check.state.ljust(widths[1]), check.detail.ljust(widths[2]), check.remedy)
        print("  ".join(cells).rstrip())
    failed = [check.name for check in checks if check.core and check.state == "failed"]
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nEverything the library needs works.")
    return 1 if failed else 0


def _machine() -> list[Check]:
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name()})"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu"
    return [
        Check("sparselayers", "info", sl.__version__),
        Check("python", "info", platform.python_version()),
        Check("torch", "info", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"),
        Check("device", "info", device),
    ]


def _operators() -> list[Check]:
    return [
        _try("waterline", "sparsemax has its known answer", _waterline),
        _try("prox", "soft threshold has its known answer and slope", _prox),
        _try("codes", "ISTA on an orthonormal dictionary; zeros at lam_max", _codes),
        _try("lasso", "a certified code has its known value and slope", _lasso),
        _try("attention", "softmax as in torch; sparse rows sum to 1", _attention),
        _try("scale-free", "attention is the same after a scale and a shift", _scale_free),
        _try("weights", "a group lasso step removes the small row only", _weights),
        _try("groups", "an attention head goes whole; overlapping groups go by unions", _groups),
        _try("compact", "a smaller model has the same outputs", _compact),
    ]


def _try(name: str, claim: str, check: Callable[[], bool]) -> Check:
    """A self-check as a core line: a wrong answer and an exception are both a failure."""
    remedy = "report it with this table; try another torch release"
    try:
        right = check()
    except Exception as error:  # whatever goes wrong belongs in the table
        return Check(name, "failed", _first_line(error), remedy, core=True)
    return Check(
        name, "ok" if right else "failed", claim if right else f"wrong: {claim}", "" if right else remedy, core=True
    )


def _waterline() -> bool:
    return torch.allclose(F.sparsemax(torch.tensor([0.5, 1.2, 0.1])), torch.tensor([0.15, 0.85, 0.0]))


def _prox() -> bool:
    v = torch.tensor([2.0, -0.3], requires_grad=True)
    shrunk = sl.L1().prox(v, 0.5)
    (slope,) = torch.autograd.grad(shrunk.sum(), v)
    return torch.equal(shrunk.detach(), torch.tensor([1.5, 0.0])) and torch.equal(slope, torch.tensor([1.0, 0.0]))


def _codes() -> bool:
    x = torch.tensor([1.0, -0.2])
    code = F.ista(x, torch.eye(2), 0.5, depth=1)
    nothing = F.fista(x, torch.eye(2), 1.0, depth=5, schedule=sl.Homotopy())
    return torch.allclose(code, torch.tensor([0.5, 0.0])) and not nothing.any()


def _lasso() -> bool:
    x = torch.tensor([1.0, -0.2], requires_grad=True)
    found = F.lasso(x, torch.eye(2), 0.5)
    (slope,) = torch.autograd.grad(found.code.sum(), x)
    return torch.allclose(torch.stack([found.code.detach(), slope]), torch.tensor([[0.5, 0.0], [1.0, 0.0]]))


def _attention() -> bool:
    query, key = torch.linspace(-2, 2, 12).view(3, 4), torch.linspace(3, -3, 20).cos().view(5, 4)
    ours = F.scaled_dot_product_attention(query, key, key, mapping="softmax")
    theirs = torch.nn.functional.scaled_dot_product_attention(query[None], key[None], key[None])[0]
    sparse = F.scaled_dot_product_attention(query, key, torch.eye(5), mapping="sparsemax")
    nearest = F.scale_free_attention(query, key, torch.eye(5), locality=0.1)
    sums = torch.cat([sparse.sum(-1), nearest.sum(-1)])
    return (
        torch.allclose(ours, theirs, atol=1e-6) and torch.allclose(sums, torch.ones(6)) and bool((nearest == 0).any())
    )


def _scale_free() -> bool:
    query, key = torch.linspace(-2, 2, 12).view(3, 4), torch.linspace(3, -3, 20).cos().view(5, 4)
    out, moved = (F.scale_free_attention(c * query + b, c * key + b, key, locality=0.1) for c, b in ((1, 0), (16, 4)))
    return torch.allclose(out, moved, atol=1e-4)


def _weights() -> bool:
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    sl.Regularizer(layer, sl.GroupL2(), lam=1.0).step(lr=1.0)
    stepped = torch.allclose(layer.weight, torch.tensor([[2.4, 3.2], [0.0, 0.0]])) and not layer.weight[1].any()
    # Adam's first step moves every entry by lr, and its prox shrinks them by lr lam / abs(g).
    with torch.no_grad():
        layer.weight.fill_(2.0)
    optimizer = sl.ProxAdamW([layer.weight], lr=0.5, regularizer=sl.Regularizer(layer, sl.L1(), lam=1.0))
    layer.weight.grad = torch.tensor([[1.0, 0.25], [2.0, 0.5]])
    optimizer.step()
    return stepped and torch.allclose(layer.weight, torch.tensor([[1.0, 0.0], [1.25, 0.5]]), atol=1e-6)


def _groups() -> bool:
    attention = torch.nn.MultiheadAttention(4, 2)
    with torch.no_grad():
        for weight in (attention.in_proj_weight, attention.out_proj.weight):
            weight.fill_(1.0)
        attention.in_proj_weight.view(3, 2, 2, 4)[:, 1] = 0.1
        attention.out_proj.weight[:, 2:] = 0.1
    sl.Regularizer(attention, sl.GroupL2(), lam=1.0, groups="head").step(lr=1.0)
    alive = attention.out_proj.weight.any(0).tolist()
    path = sl.LatentGroupL2(((0, 1), (1, 2), (2, 3))).prox(torch.tensor([3.0, 4.0, 0.1, 0.2]), 1.0)
    return alive == [True, True, False, False] and torch.allclose(path, torch.tensor([2.4, 3.2, 0.0, 0.0]))


def _compact() -> bool:
    first = torch.nn.Linear(3, 4)
    first.weight.data[1:3].zero_()
    model, x = torch.nn.Sequential(first, torch.nn.Tanh(), torch.nn.Linear(4, 2)), torch.eye(3)
    small = sl.compact(model, x)
    shapes = [tuple(p.shape) for p in small.parameters()]
    return shapes == [(2, 3), (2,), (2, 2), (2,)] and torch.allclose(small(x), model(x), atol=1e-6)


def _kernels(device: Literal["cpu", "cuda"]) -> Check:
    """The fused kernels, tried on sparsemax with its gradient. The library works without them."""
    name, package = ("CPU kernels", "numba") if device == "cpu" else ("CUDA kernels", "triton")
    if device == "cuda" and not torch.cuda.is_available():
        return Check(name, "info", "no CUDA device")
    z = torch.linspace(-1, 2, 300, device=device).sin().view(3, 100)
    if serve(z) is None:
        if importlib.util.find_spec(package) is None:
            return Check(name, "missing", f"{package} is not installed: plain torch operations serve", "see below")
        return Check(name, "info", "switched off: plain torch operations serve", "unset SPARSELAYERS_KERNELS")
    try:
        fused = torch.stack(torch.autograd.functional.vjp(F.sparsemax, z, z))
        with sl.kernels(False):
            plain = torch.stack(torch.autograd.functional.vjp(F.sparsemax, z, z))
    except Exception as error:
        return Check(name, "failed", _first_line(error), "set SPARSELAYERS_KERNELS=0 and report it with this table")
    if torch.allclose(fused, plain, atol=1e-6):
        return Check(name, "ok", f"{package}: sparsemax and its gradient agree with plain torch")
    return Check(name, "failed", "sparsemax is wrong", "set SPARSELAYERS_KERNELS=0 and report it with this table")


def _compiler(fast: bool) -> Check:
    """torch.compile, tried on sparsemax: it needs a C++ compiler on the CPU. The library works without it."""
    if fast:
        return Check("torch.compile", "info", "not tried (--fast)")
    z = torch.tensor([[0.5, 1.2, 0.1]])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler says of itself is no news of ours
            right = torch.allclose(torch.compile(F.sparsemax)(z), F.sparsemax(z))
    except Exception as error:
        return Check("torch.compile", "missing", _first_line(error), "install a C++ compiler (g++ or clang)")
    if right:
        return Check("torch.compile", "ok", "sparsemax compiles and agrees")
    return Check("torch.compile", "failed", "compiled sparsemax is wrong", "do not compile; report it with this table")


def _extras() -> list[Check]:
    checks = []
    for module, package, use, remedy in EXTRAS:
        found = importlib.util.find_spec(module) is not None
        if found:
            checks.append(Check(package, "ok" if remedy else "info", f"{_version(package)}; {use}"))
        else:
            checks.append(Check(package, "missing" if remedy else "info", f"not installed; {use}", remedy))
    return checks


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:90]
