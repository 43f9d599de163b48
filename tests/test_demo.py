"""The demo: every part runs, writes what it says it wrote, and its numbers are sane. And the figures users can draw."""

import pytest
import torch

from sparselayers import plotting
from sparselayers.__main__ import main
from sparselayers.demo import attention, common, neurons, photograph, run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "made"
    return out, run(out, quick=True)


def test_figures_are_written_where_the_results_say(results):
    out, parts = results
    figures = [figure for part in parts for figure in part.figures]
    assert sorted(figures) == sorted(out.iterdir())
    assert len(figures) == 5
    assert all(figure.stat().st_size > 5000 and figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_tables_are_aligned_and_hold_the_numbers(results):
    for part in results[1]:
        for block in str(part).split("\n\n"):
            title, rule, head, *lines = block.split("\n")
            assert title
            assert {len(line) for line in (rule, head, *lines)} == {len(rule)}


def test_codes_improve_with_depth_and_with_learning(results):
    found = results[1][0]
    assert isinstance(found, photograph.Photograph)
    assert len(found.curves) == 6
    random = {curve.method: curve for curve in found.curves if curve.dictionary == "random"}
    for curve in found.curves:
        assert len(curve.psnr) == len(curve.zeros) == len(curve.excess) == len(found.depths)
        assert curve.psnr[-1] > curve.psnr[0]
        assert curve.excess[0] > curve.excess[-1] > 0
        assert curve.psnr[-1] >= random[curve.method].psnr[-1]
        assert all(0.3 < zeros < 1 for zeros in curve.zeros)


def test_denoising_gains(results):
    found = results[1][0]
    assert found.noisy == pytest.approx(20, abs=0.5)
    assert found.denoised["learned"] > found.noisy + 3
    assert found.denoised["learned"] > found.denoised["random"]


def test_sparse_attention_has_zeros_and_softmax_none(results):
    found = results[1][1]
    assert isinstance(found, attention.Attention)
    rows = {row.mapping: row for row in found.rows}
    assert rows["softmax"].zeros == 0
    assert rows["softmax"].places == attention.GRID**2
    for mapping in ("sparsemax", "scale_free"):
        assert rows[mapping].zeros > 0.5
        assert rows[mapping].places >= 1
        assert rows[mapping].accuracy > 0.5


def test_neurons_leave_and_accuracy_stays(results):
    found = results[1][2]
    assert isinstance(found, neurons.Neurons)
    assert found.plain.kept == (128, 128)
    assert found.plain.zeros == 0
    assert max(found.sparse.kept) < 120
    assert found.sparse.zeros > 0.1
    assert found.sparse.accuracy > found.plain.accuracy - 0.03


def test_the_crop_is_held_out():
    training, crop = photograph.load(crop_side=64)
    assert crop.shape == (64, 64)
    assert training.shape[1] == 64
    own = photograph.centred(photograph.patches(crop, stride=8))[0]
    textured = own[own.square().sum(1) > 0.3**2]
    assert torch.cdist(textured, training[:: len(training) // 2000]).amin() > 0


def test_digits_are_split_once():
    data = common.digits()
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.amax() == 1
    assert set(data.test_classes.tolist()) == set(range(10))


def test_command_line_without_the_extra_names_the_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tqdm" else object())
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "The demo needs tqdm: pip install 'sparselayers[demo]'\n"


def test_plots_take_plain_data(tmp_path):
    figures = [
        plotting.curves([1, 2], {"y": {"a": [1.0, 2.0]}}, xlabel="x", title="t"),
        plotting.images({"a": torch.rand(4, 5)}, title="t"),
        plotting.atoms(torch.randn(16, 10, requires_grad=True), title="t", columns=4),
        plotting.weight_pattern({"a": torch.eye(3, requires_grad=True)}, title="t"),
        plotting.attention_maps(torch.rand(2, 8, 8), {"a": torch.rand(2, 6, 6)}, title="t"),
    ]
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")


def test_atoms_must_be_square():
    with pytest.raises(ValueError, match="square number, got 10"):
        plotting.atoms(torch.randn(10, 4), title="t")
