"""The doctor's table and return code, and the command line round it."""

import sys

import pytest

import sparselayers as sl
from sparselayers import doctor
from sparselayers.__main__ import BENCHMARKS, bench, main
from sparselayers.ops.kernels import rows


def test_a_healthy_machine(capsys):
    assert main(["doctor", "--fast"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "torch", "device", "waterline", "codes", "attention", "weights", "numba", "triton", "tqdm"):
        assert any(line.startswith(name) for line in out.splitlines()), name
    assert "Everything the library needs works." in out
    kernels = next(line for line in out.splitlines() if line.startswith("CPU kernels"))
    assert "agree with plain torch" in kernels


def test_core_checks_pass():
    core = [check for check in doctor.diagnose(fast=True) if check.core]
    names = ("waterline", "prox", "codes", "lasso", "attention", "scale-free", "weights", "groups", "compact")
    assert {check.name for check in core} == set(names)
    assert {check.state for check in core} == {"ok"}


def test_a_wrong_answer_and_an_exception_are_failures(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no kernel\nand a long trace")

    monkeypatch.setattr(doctor, "_waterline", lambda: False)
    monkeypatch.setattr(doctor, "_codes", broken)
    assert doctor.run(fast=True) == 1
    out = capsys.readouterr().out
    assert "Failed: waterline, codes" in out
    assert "wrong: sparsemax" in out
    assert "RuntimeError: no kernel  " in out


def test_what_is_missing_comes_with_its_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    states = {check.name: check for check in doctor.diagnose(fast=True)}
    assert states["tqdm"].state == "missing"
    assert states["tqdm"].remedy == "pip install 'sparselayers[demo]'"
    assert states["scipy"].remedy == "pip install scipy"
    assert states["numba"].remedy == "pip install 'sparselayers[fast]'"
    assert states["torch-pruning"].remedy == "pip install 'sparselayers[prune]'"


def test_kernels_that_are_off_missing_or_wrong(monkeypatch):
    with sl.kernels(False):
        off = doctor._kernels("cpu")
    assert (off.state, off.detail) == ("info", "switched off: plain torch operations serve")
    monkeypatch.setattr(rows, "_numba", lambda part: 1 / 0)
    broken = doctor._kernels("cpu")
    assert (broken.state, broken.core) == ("failed", False)
    assert "ZeroDivisionError" in broken.detail
    monkeypatch.undo()
    monkeypatch.setattr(doctor.torch, "allclose", lambda *args, **options: False)
    assert doctor._kernels("cpu").detail == "sparsemax is wrong"
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sparselayers.ops.kernels.switch._installed", lambda package: False)
    assert doctor._kernels("cpu").state == "missing"
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    assert doctor._kernels("cuda").detail == "no CUDA device"


def test_without_a_compiler_the_library_still_works(monkeypatch):
    def no_compiler(function):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr("torch.compile", no_compiler)
    check = doctor._compiler(fast=False)
    assert (check.state, check.core) == ("missing", False)
    assert "C++ compiler" in check.remedy


def test_bench_in_an_installed_package_says_where_the_benchmarks_are(tmp_path, capsys):
    assert bench(tmp_path) == 2
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "mappings.py").touch()
    assert bench(tmp_path) == 2
    assert "Clone the repository" in capsys.readouterr().err


def test_bench_runs_every_script_and_returns_the_first_failure(tmp_path, capfd):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    for code, subject in enumerate(BENCHMARKS):
        script = f"import sys; print('ran {subject}', sys.argv[1:]); raise SystemExit({code})"
        (tmp_path / "benchmarks" / f"{subject}.py").write_text(script)
    assert bench(tmp_path, quick=True) == 1
    out = capfd.readouterr().out
    assert all(f"ran {subject} ['--quick']" in out for subject in BENCHMARKS)


@pytest.mark.parametrize("argv", [[], ["nonsense"]])
def test_usage(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert "demo" in capsys.readouterr().err


def test_the_package_runs_as_a_module():
    import subprocess

    shown = subprocess.run([sys.executable, "-m", "sparselayers", "--help"], capture_output=True, text=True, check=True)
    assert "doctor" in shown.stdout
