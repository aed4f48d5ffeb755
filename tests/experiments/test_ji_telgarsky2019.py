"""The experiment on Ji & Telgarsky 2019: a small run, its checks, its images, its figures."""

import dataclasses
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.config import ConfigError, load
from lintensor_jax.experiments import find
from lintensor_jax.experiments.ji_telgarsky2019 import configuration, images
from lintensor_jax.experiments.ji_telgarsky2019.setup import circles, sector, start
from lintensor_jax.figures.panels import Line, LinePanel, panel_figure

experiment = find("ji-telgarsky2019")
NUMBER: Any = 3
CONFIG_FILE = Path(__file__).parents[2] / "configs" / "ji-telgarsky2019.toml"

# Both data sets have one shape, so that flows of one depth share a compilation.
SMALL = configuration.Configuration(
    depth=2,
    circles_depth=2,
    width=3,
    num_starts=2,
    num_samples=16,
    flow=configuration.FlowTask(margin=1e5, rtol=1e-8, agreement=1e-4),
    descent=configuration.DescentTask(num_steps=2_000),
    images=images.ImagesTask(widths=(12,), num_epochs=8, num_images=600, final_risk=1.0),
)


@pytest.fixture(scope="module")
def result():
    names = []

    def track(jobs):
        for job in jobs:
            names.append(str(job))
            yield job

    found = experiment.run(SMALL, ("small",), track)
    assert names == [
        "sector, depth 1",
        "sector, depth 1, descent",
        "sector, depth 2",
        "sector, depth 2, descent",
        "circles, depth 1",
        "circles, depth 1, descent",
        "circles, depth 2",
        "circles, depth 2, descent",
        "counterexample",
        "images, default start",
        "images, equal Frobenius norms",
    ]
    return found


def rows(report, name):
    return next(table.rows for table in report.tables if table.name == name)


def test_all_checks_pass(result):
    report = experiment.report(result)
    assert len(report.checks) == 13
    for check in report.checks:
        assert check.passed, str(check)
    flows = rows(report, "flows")
    assert [(row["data"], row["depth"], row["start"]) for row in flows] == [
        ("sector", 1, 1),
        ("sector", 2, 1),
        ("sector", 2, 2),
        ("circles", 1, 1),
        ("circles", 2, 1),
        ("circles", 2, 2),
    ]
    assert len(rows(report, "descents")) == 6
    # Every heading is one cell of the Markdown.
    lines = report.markdown().splitlines()
    for table in report.tables:
        assert sum(line.count("|") == len(table.columns) + 1 for line in lines) >= 2


def test_flow_and_one_layer_end_at_one_direction(result):
    for data in ("sector", "circles"):
        ends = [run.direction[-1] for run in result.flows if run.data == data]
        starts = [run.direction[0] for run in result.flows if run.data == data]
        np.testing.assert_allclose(starts[0], starts[1], rtol=1e-12)
        # Each is within 1e-4 of the maximum margin.
        np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=0, atol=2e-4)
        assert np.linalg.norm(starts[0] - ends[0]) > 0.1


def test_a_violated_bound_fails_its_check(result):
    run = next(run for run in result.flows if run.depth > 1)
    broken = dataclasses.replace(run.bounds, remainder=10 * run.bounds.remainder)
    flows = [dataclasses.replace(run, bounds=broken)]
    changed = dataclasses.replace(
        result, flows=[flows[0] if other is run else other for other in result.flows]
    )
    report = experiment.report(changed)
    failed = [check.name for check in report.checks if not check.passed]
    assert failed == ["Lemma 2.6, saved times that violate it"]


def test_appendix_a(result):
    stuck, moved = result.counterexamples
    assert (stuck.sum_of_layers == 0).all()
    assert (stuck.log_risk >= 0).all()
    assert not stuck.conditions[0].holds
    # Assumption 1.2 fails near it as well, but the risk falls: the assumption is only sufficient.
    assert not moved.conditions[0].holds
    assert moved.log_risk[-1] < -3


def test_the_data_are_separable_and_in_the_unit_disc():
    for make in (sector, circles):
        for seed in range(5):
            problem = make(40, seed)
            assert np.linalg.norm(problem.X, axis=1).max() <= 1
            assert lt.is_separable(problem).margin > 0.1
            assert (np.asarray(problem.y) > 0).sum() == 20


def test_starts_have_no_more_than_the_risk_of_zero():
    import jax

    problem = sector(40, 0)
    for seed in range(10):
        network = start(problem, 3, 4, 0.3, jax.random.key(seed))
        log_loss = problem.log_loss(network.linear_coefficients())
        flipped = problem.log_loss(-network.linear_coefficients())
        assert log_loss <= flipped


def test_the_configuration_file_is_the_default():
    assert load(CONFIG_FILE, configuration.Configuration) == configuration.Configuration()


def test_reduce_keeps_what_is_small():
    quick, notes = experiment.reduce(configuration.Configuration())
    assert quick.num_starts == 1
    assert "1 of 4 starts, 20,000 of 500,000 descent steps" in notes[0]
    assert experiment.reduce(quick) == (quick, ())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: configuration.Configuration(num_samples=7), "num_samples must be even, got 7"),
        (lambda: configuration.Configuration(depth=1), "depth must be a whole number >= 2, got 1"),
        (lambda: configuration.DescentTask(growth=0.5), "growth must be at least 1, got 0.5"),
        (lambda: images.ImagesTask(momentum=1.0), "momentum must be < 1, got 1"),
        (lambda: images.ImagesTask(cifar10="/nowhere"), "cifar10 must be a folder with data_batch"),
        (
            lambda: images.ImagesTask(cifar10=NUMBER),
            "must be a folder's path, or empty, got 3",
        ),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def _write_batches(folder, module):
    """Write CIFAR-10 as distributed: pickles of a dict of bytes, made by an old NumPy."""
    rng = np.random.default_rng(0)
    for index in range(1, 6):
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        text = pickle.dumps({b"data": data, b"labels": [index % 10] * 4}, protocol=2)
        old = text.replace(b"numpy._core.multiarray", module)
        (folder / f"data_batch_{index}").write_bytes(old)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_cifar10_is_read_as_distributed(tmp_path, module):
    _write_batches(tmp_path, module)
    task = images.ImagesTask(cifar10=str(tmp_path), num_images=18)
    pixels, labels = images.load_images(task)
    assert pixels.shape == (18, 3072)
    np.testing.assert_allclose([pixels.mean(), np.mean(pixels**2)], [0, 1], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(labels[[0, 4, 17]], [1, 2, 5])


def test_a_pickle_that_runs_programs_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path(tmp_path / "run").touch, ())

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ConfigError, match="data_batch_1, which is no batch of CIFAR-10"):
        images.load_images(images.ImagesTask(cifar10=str(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_without_images_figure_3_is_left_out(result, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not images.is_available(images.ImagesTask())
    alone = dataclasses.replace(result, images=[])
    assert set(experiment.figures(alone)) == {"figure1", "figure2"}
    assert len(experiment.report(alone).checks) == 10


def test_figures(result):
    drawn = experiment.figures(result)
    assert {name: len(figure.axes) for name, figure in drawn.items()} == {
        "figure1": 3,
        "figure2": 4,
        "figure3": 4,  # each panel has a second axis
    }
    _, distances, ratios = drawn["figure1"].axes
    flow = next(run for run in result.flows if run.data == "sector" and run.depth == 2)
    np.testing.assert_array_equal(
        ratios.lines[0].get_ydata(), flow.bounds.alignment.rank_one_ratios[:, 0]
    )
    assert distances.get_yscale() == "log"
    # The data after the first layer, in their principal axes: at the end they are on a line.
    after_first = drawn["figure2"].axes[3].lines[0].get_xydata()
    assert np.abs(after_first[:, 1]).max() < 1e-2


def test_a_panel_of_lines():
    x = np.arange(1.0, 4.0)
    panel = LinePanel("title", [Line(x, x, "a", 0), Line(x, 2 * x, "", 0, dashed=True)], "x", "y")
    figure = panel_figure([[panel, panel], [panel]], 2.0)
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]
