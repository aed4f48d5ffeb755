"""Machine code for CUDA, on CPUs: its text is translated to C, and a fake replaces its driver."""

import sys
import types
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ptx_as_c
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import batched_flow as batched_flow_module
from lintensor_jax.dynamics.batch import ends_by_machine_code, finishing, hardware
from lintensor_jax.dynamics.batch.cuda import agreement, kernel, launcher
from lintensor_jax.dynamics.batch.programs import Arguments, Native, Refusal
from lintensor_jax.initialization import gaussian

RNG = np.random.default_rng(0)
PAPER = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
TOY = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
DIAGONAL = lt.DiagonalNetwork.zeros(2, 2)
needs_compiler = pytest.mark.skipif(ptx_as_c.COMPILER is None, reason="there is no C compiler")


def starts(like, count) -> Any:
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: gaussian(like, key, 0.3))(keys)


@pytest.fixture
def core(monkeypatch, tmp_path_factory):
    """A fake CUDA device, whose driver runs PTX as C; the set of given warnings is empty."""
    fake_driver = ptx_as_c.Core(tmp_path_factory.mktemp("kernels"))
    monkeypatch.setattr(hardware, "kind_of", lambda device: "cuda")
    monkeypatch.setattr(batched_flow_module, "_warned", set())
    monkeypatch.setitem(sys.modules, "cuda.core", fake_driver)
    return fake_driver


def text_of(monkeypatch, networks, problem, **options) -> Any:
    """The text of the kernels of a batch, or the refusal; no flow is integrated."""
    caught, texts = [], []

    class Caught(Exception):
        pass

    def catch(prepared, chunk):
        caught.extend((prepared.stepper, chunk))
        raise Caught

    def load(text, device):
        texts.append(text)
        raise launcher.Unavailable("only its text is wanted")

    with monkeypatch.context() as patch:
        patch.setattr(hardware, "kind_of", lambda device: "cuda")
        patch.setattr(batched_flow_module, "integrate_chunk", catch)
        patch.setattr(launcher, "load", load)
        with pytest.raises(Caught):
            lt.batched_flow(networks, problem, **options)
        stepper, chunk = caught
        given = Arguments(stepper.of_any_width()), Arguments(chunk)
        refusal = ends_by_machine_code._rows_by_xla(*given, Native())
    return texts[0] if texts else refusal


CLASSES: dict[str, Any] = {
    "diagonal": DIAGONAL,
    "convolution": lt.ConvolutionalNetwork.zeros(2, (2, 2)),
    "fully connected": lt.FullyConnectedNetwork.zeros((2, 2)),
    "differential diagonal": lt.DifferentialDiagonalNetwork(jnp.zeros(2), jnp.zeros(2), 3),
    "tensor": lt.TensorNetwork(jnp.asarray(RNG.standard_normal((2, 2, 2))), jnp.zeros((2, 2))),
}
METHODS = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}


def _cases():
    for name in CLASSES:
        for method in METHODS:
            for problem in ("regression", "classification"):
                quick = (name, method, problem) in [
                    ("diagonal", "Dopri8", "regression"),
                    # Here a square is one value that is used twice: in coefficients and in a norm.
                    ("differential diagonal", "Tsit5", "classification"),
                ]
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param(
                    name, method, problem, marks=marks, id=f"{name}-{method}-{problem}"
                )


@pytest.mark.slow_beyond(1)
@needs_compiler
@pytest.mark.parametrize(("name", "method", "problem"), list(_cases()))
def test_threads_have_the_bits_of_the_cpu(name, method, problem, core, monkeypatch):
    """64 threads that take 75 rows end every lane with the same bits as vectors of the CPU."""
    monkeypatch.setattr(ends_by_machine_code, "_compared", lambda *_: "")
    networks, data = starts(CLASSES[name], 75), PAPER if problem == "regression" else TOY
    options: dict[str, Any] = {"solver": METHODS[method], "finish": None}
    if problem == "classification":
        options["stop"] = lt.StopAtMargin(1e3)
    found = lt.batched_flow(networks, data, **options)
    assert core.launched == [64, 64]
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "kind_of", lambda device: "cpu")
        # On a GPU XLA starts and finishes lanes. By machine code, last bits are different.
        for module in (ends_by_machine_code, finishing):
            patch.setattr(module, "mapped", lambda *_: None)
        expected = lt.batched_flow(networks, data, **options)
    assert (found.compilation, expected.compilation) == ("native", "native")
    for name in ("code", "num_steps", "num_rejected_steps", "unfinished_network"):
        for a, b in zip(
            *(jax.tree.leaves(getattr(f, name)) for f in (found, expected)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert int(found.executed_steps) >= int(found.num_steps.sum())
    assert int(found.executed_steps) % 32 == 0


@needs_compiler
def test_a_kernel_that_agrees_with_xla_is_used(core, monkeypatch):
    """A kernel that has agreed once is not compared again."""
    compared, original = [], ends_by_machine_code._compared
    monkeypatch.setattr(
        ends_by_machine_code, "_compared", lambda *a: compared.append(original(*a)) or compared[-1]
    )
    options: dict[str, Any] = {"finish": None, "solver": diffrax.Tsit5()}
    for _ in range(2):
        flow = lt.batched_flow(
            starts(DIAGONAL, 24), PAPER, compilation=Native(threads=4), **options
        )
        assert (flow.compilation, flow.fallback_reason) == ("native", "")
    assert compared == [""]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_data_of_each_lane_come_with_its_row(kind, core):
    """Also flows that go on by implicit steps are compared with XLA at run time."""
    X = jnp.asarray(RNG.standard_normal((40, 1, 2)))
    if kind == "regression":
        problem = jax.vmap(lt.Regression)(X, jnp.ones((40, 1)))
        flow = lt.batched_flow(starts(DIAGONAL, 40), problem, shared_problem=False)
        fitted = np.einsum("ni,ni->n", flow.coefficients, X[:, 0])
        np.testing.assert_allclose(fitted, 1.0, rtol=0, atol=1e-9)
    else:
        options: dict[str, Any] = {"stop": lt.StopAtMargin(1e6), "max_steps": 60}
        flow = lt.batched_flow(starts(DIAGONAL, 40), TOY, stiff_max_steps=2000, **options)
        assert int(flow.num_implicit_steps.sum()) > 0
        assert (np.asarray(flow.log_margin) >= np.log(1e6) - 1e-9).all()
    assert (flow.compilation, flow.fallback_reason) == ("native", "")


def _wrong(launch):
    def wrong(table, order, count, data):
        rows, executed = launch(table, order, count, data)
        return rows.at[:, 4:8].multiply(1.001), executed

    return wrong


def _idle(launch):
    """A launch whose counter has lost a row."""
    return lambda table, order, count, data: launch(table, order, count - 1, data)


def _failing(launch):
    def failing(*_):
        raise RuntimeError("an illegal address")

    return failing


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "words", "used"),
    [
        (_wrong, "it disagrees with XLA in 24 of 24 lanes", 5),
        (_idle, "lanes were left unfinished", 6),
        (_failing, "a launch failed with RuntimeError: an illegal address", 7),
    ],
)
def test_a_kernel_with_a_fault_gives_way_to_xla(fault, words, used, core, monkeypatch):
    """There is one warning, and the kernel is not launched again."""
    original, launches = kernel.CheckedKernel.__init__, []

    def faulty(self, *arguments):
        original(self, *arguments)
        launch = fault(self.launch)
        self.launch = lambda *a: launches.append(1) or launch(*a)

    monkeypatch.setattr(kernel.CheckedKernel, "__init__", faulty)
    networks, options = starts(DIAGONAL, 24), {"finish": None, "solver": diffrax.Tsit5()}
    compilation = Native(threads=used)  # a program of this test
    words = f"machine code for CUDA is not used: {words}"
    with pytest.warns(UserWarning, match=words):
        flow = lt.batched_flow(networks, PAPER, compilation=compilation, **options)
    assert (flow.compilation, flow.fallback_reason) == ("xla", words)
    expected = lt.batched_flow(networks, PAPER, compilation=lt.XLA(), **options)
    again = lt.batched_flow(networks, PAPER, compilation=compilation, **options)
    for found in (flow, again):
        np.testing.assert_array_equal(found.coefficients, expected.coefficients)
    assert again.fallback_reason == words
    assert launches == [1]


@pytest.mark.parametrize("there", [False, True])
def test_what_cannot_be_loaded_gives_way_to_xla(there, core, monkeypatch):
    """XLA runs the lanes if cuda.core is missing, or if the driver refuses the text."""
    words = r'pip install "lintensor_jax\[cuda\]"'
    if there:
        words = "the CUDA driver failed with RuntimeError: unsupported toolchain"
        monkeypatch.setattr(core, "ObjectCode", types.SimpleNamespace(from_ptx=_refuse))
    else:
        monkeypatch.setitem(sys.modules, "cuda.core", None)
    options: dict[str, Any] = {"finish": None, "solver": diffrax.Tsit5()}
    compilation = Native(threads=8 + there)
    with pytest.warns(UserWarning, match=words):
        flow = lt.batched_flow(starts(DIAGONAL, 24), PAPER, compilation=compilation, **options)
    assert flow.compilation == "xla"


def _refuse(text):
    raise RuntimeError("unsupported toolchain")


class Own(eqx.Module):
    """A user's network."""

    weights: jax.Array
    depth: int = eqx.field(static=True, default=2)

    def linear_coefficients(self):
        return self.weights**2 * jnp.exp(-0.01 * self.weights)


class Waves(Own):
    def linear_coefficients(self):
        return jnp.sin(self.weights)


MORE_CLASSES: dict[str, Any] = {
    "own": Own(jnp.zeros(2)),
    "matrix factorization": lt.MatrixFactorizationNetwork(jnp.zeros((2, 2, 2))),
    "linear": lt.LinearNetwork(jnp.zeros(2)),
    "orthogonal": lt.OrthogonalNetwork(
        jnp.eye(2), (jnp.eye(2), jnp.eye(2)), (jnp.zeros(2), jnp.zeros(2))
    ),
    **CLASSES,
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "own" else pytest.param(name, marks=pytest.mark.slow)
        for name in MORE_CLASSES
    ],
)
def test_every_network_has_a_text(name, monkeypatch):
    problem = PAPER
    if name == "matrix factorization":
        problem = lt.MatrixSensing(jnp.asarray(RNG.standard_normal((2, 2, 2))), jnp.ones(2))
    like = MORE_CLASSES[name]
    networks = jax.tree.map(lambda x: jnp.broadcast_to(x, (9, *x.shape)), like)
    text = text_of(monkeypatch, networks, problem, solver=diffrax.Tsit5(), shared_constants=False)
    assert text.count(".entry") == 2
    assert ".func" not in text
    assert "bar.sync" not in text
    assert text.count("atom") == 2
    arithmetic = [line.split()[0] for line in text.splitlines() if ".f64" in line.split(" ")[0]]
    assert all(
        ".rn" in word for word in arithmetic if word.split(".")[0] in ("add", "sub", "mul", "fma")
    )


def test_what_threads_cannot_do_is_refused(monkeypatch):
    networks = jax.tree.map(lambda x: jnp.zeros((9, *x.shape)), lt.DiagonalNetwork.zeros(2, 9))
    problem = lt.Regression(np.ones((1, 9)), np.ones(1))
    refusal = text_of(monkeypatch, networks, problem, finish=None)
    assert refusal == Refusal("a step changes more than 38 numbers of a lane", True)
    waves = Waves(jnp.zeros((9, 2)))
    assert text_of(monkeypatch, waves, PAPER, finish=None).reason == (
        "no instruction for the JAX primitive sin"
    )


def test_agreement():
    """Differences by rounding are allowed; a fault in one lane of ten is not."""
    y, code = RNG.standard_normal((40, 3)), np.zeros(40, np.int32)
    steps = np.full(40, 100, np.int32)
    ends = [y, steps * 1.0, code, steps, code]
    assert not agreement.disagreement(ends, ends, 1e-9)
    assert not agreement.disagreement([y * (1 + 1e-10), *ends[1:]], ends, 1e-9)
    for rows in (slice(0, 2), slice(0, 4)):
        said = "" if rows.stop == 2 else "it disagrees with XLA in 4 of 40 lanes"
        far, other, more = y.copy(), code.copy(), steps.copy()
        far[rows], other[rows], more[rows] = np.nan, 3, 110
        assert agreement.disagreement([far, *ends[1:]], ends, 1e-9) == said
        assert agreement.disagreement([y, ends[1], other, steps, code], ends, 1e-9) == said
        assert agreement.disagreement([y, ends[1], code, more, code], ends, 1e-9) == said
    y[:] = np.nan
    assert not agreement.disagreement(ends, ends, 1e-9)
