"""Many flows at once: against diffrax lane by lane, the queue, a lane's function for many."""

import subprocess
import sys
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import hardware
from lintensor_jax.dynamics.batch.batched_flow import batched_flow
from lintensor_jax.dynamics.batch.fourier_basis import Spectral
from lintensor_jax.dynamics.batch.programs import XLA, Native
from lintensor_jax.dynamics.batch.vectorization import one_lane_to_many as module
from lintensor_jax.dynamics.batch.vectorization.one_lane_to_many import lanewise
from lintensor_jax.dynamics.statuses import status_name
from lintensor_jax.dynamics.system import System
from lintensor_jax.initialization import gaussian

RNG = np.random.default_rng(0)
PROBLEM = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
TOY = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
NETWORKS: dict[str, Any] = {
    "diagonal": lt.DiagonalNetwork.zeros(2, 2),
    "convolution": lt.ConvolutionalNetwork.zeros(2, (2, 2)),
    "fully-connected": lt.FullyConnectedNetwork.zeros((2, 2)),
}


def starts(like, count, scale=0.3) -> Any:
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: gaussian(like, key, scale))(keys)


def lane(tree, k) -> Any:
    return jax.tree.map(lambda leaf: leaf[k], tree)


def names(flow) -> list[str]:
    count = flow.num_steps.shape[0]
    return [status_name(lane(flow.status, k)) for k in range(count)]


def many(a, b):
    """A function with every kind of primitive that occurs in a network's flow."""
    grown = jnp.outer(a, b) @ jnp.stack([a, b, a * b]).T
    moved = jnp.roll(jnp.concatenate([a, b])[::-1], 1)[jnp.array([3, 0, 5])]
    spectrum = jnp.fft.irfft(jnp.fft.rfft(a) * jnp.fft.rfft(b), 3)
    picked = jnp.where(a > b, jnp.max(grown, axis=0), -(jnp.sum(a) ** 3))
    return moved @ grown, spectrum, picked, jnp.prod(jnp.tanh(b)), jnp.zeros(2), a.reshape(3, 1)


def no_fourier(a, b):
    return tuple(x for i, x in enumerate(many(a, b)) if i != 1)


@pytest.mark.slow_beyond(5)
@pytest.mark.parametrize(("function", "limit"), [(no_fourier, 1e9), (no_fourier, 0), (many, 1e9)])
@pytest.mark.parametrize("batched", [(True, True), (True, False), (False, True)])
def test_a_function_of_one_lane_for_many(function, limit, batched, monkeypatch):
    """Evaluation entry by entry, with lanes last, and by jax.vmap for the Fourier transform."""
    monkeypatch.setattr(module, "LARGEST_ENTRYWISE", limit)
    a, b = (RNG.standard_normal((3, 5) if has else 3) for has in batched)
    axes = tuple(-1 if has else None for has in batched)
    for dtype, tolerance in ((jnp.float64, 1e-13), (jnp.float32, 1e-5)):
        arguments = [jnp.asarray(x, dtype) for x in (a, b)]
        built = lanewise(function, [jax.ShapeDtypeStruct((3,), dtype)] * 2, batched)
        expected = jax.vmap(function, in_axes=axes, out_axes=-1)(*arguments)
        for found, wanted in zip(jax.jit(built)(*arguments), expected, strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def by_diffrax(network, problem, rtol, stop):
    """One lane by `diffeqsolve` with the same method, tolerances and control."""
    system = System.of(network, problem)

    def done(t, theta, args, **_):
        return jnp.linalg.norm(problem.residual(system.coefficients(theta))) <= stop

    # The first step of Hairer, Norsett & Wanner II.4; that of diffrax is always 0.01.
    def norm(vector):
        return jnp.sqrt(jnp.mean((vector / (rtol + rtol * jnp.abs(system.initial))) ** 2))

    slope = system.velocity(system.initial)
    guess = 0.01 * norm(system.initial) / norm(slope)
    bend = norm(system.velocity(system.initial + guess * slope) - slope) / guess
    first = jnp.minimum(100 * guess, (0.01 / jnp.maximum(norm(slope), bend)) ** 0.2)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, theta, args: system.velocity(theta)),
        diffrax.Tsit5(),
        0.0,
        1e9,
        first,
        system.initial,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol, pcoeff=0.5, icoeff=0.5),
        event=diffrax.Event(done),
        throw=False,
    )
    assert solution.ys is not None
    assert solution.ts is not None
    return system.coefficients(solution.ys[-1]), solution.ts[-1], solution.stats["num_steps"]


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("compilation", [XLA(), Native()])
@pytest.mark.parametrize("name", NETWORKS)
def test_lane_by_lane_against_diffrax(name, compilation):
    networks = starts(NETWORKS[name], 24)
    # The stop is far before the flow's end: no step is clipped, so all steps are those of diffrax.
    options: dict[str, Any] = {"finish": None, "rtol": 1e-8, "atol": 1e-8, "width": 8}
    options["solver"] = diffrax.Tsit5()
    flow = batched_flow(
        networks, PROBLEM, stop=lt.StopAtResidual(0.01), compilation=compilation, **options
    )
    solve = jax.jit(lambda network: by_diffrax(network, PROBLEM, 1e-8, 0.01))
    for k in range(12):
        beta, time, num_steps = solve(lane(networks, k))
        # Step sizes agree to 1e-6, the error of the quick root; so do the ends of the last steps.
        np.testing.assert_allclose(flow.coefficients[k], beta, rtol=0, atol=1e-6)
        np.testing.assert_allclose(flow.log_time[k], jnp.log(time), rtol=0, atol=1e-4)
        assert abs(int(flow.num_steps[k]) - int(num_steps)) <= 1
    assert set(names(flow)) == {"residual"}
    assert 1 <= flow.waste < 2


@pytest.mark.parametrize(
    "name",
    [
        "diagonal",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("convolution", "fully-connected")),
    ],
)
def test_ends_are_those_of_single_flows(name):
    networks = starts(NETWORKS[name], 6, scale=0.05)
    flow = batched_flow(networks, PROBLEM)
    assert flow.finish_accepted is not None
    assert flow.finish_accepted.all()
    assert (flow.invariant_drift < 1e-7).all()
    assert flow.log_margin is None
    for k in range(0, 6, 2):
        single = lt.gradient_flow(lane(networks, k), PROBLEM)
        # After the finish both are the limit; the required accuracy is 1e-8.
        np.testing.assert_allclose(flow.coefficients[k], single.coefficients[-1], rtol=0, atol=1e-8)


def test_the_method_of_high_order_has_a_finer_tolerance():
    networks = starts(NETWORKS["diagonal"], 6, scale=0.05)
    flow = batched_flow(networks, PROBLEM)
    same = batched_flow(networks, PROBLEM, rtol=1e-9, solver=diffrax.Dopri8())
    np.testing.assert_array_equal(flow.num_steps, same.num_steps)
    coarse = batched_flow(networks, PROBLEM, rtol=1e-8)
    assert (coarse.num_steps < flow.num_steps).all()


@pytest.mark.parametrize(("d", "depth"), [(5, 2), (6, 3)])
def test_the_fourier_basis_is_a_rotation(d, depth):
    rng = np.random.default_rng(d)
    problem = lt.Regression(rng.standard_normal((2, d)), rng.standard_normal(2))
    like = lt.ConvolutionalNetwork.zeros(d, (d,) * depth)
    system, spectral = System.of(like, problem), Spectral.of(like, problem)
    assert spectral is not None
    there = spectral.system(spectral.problem(problem))
    theta = jnp.asarray(rng.standard_normal((3, d * depth)))
    rotated = spectral.into(theta)
    np.testing.assert_allclose(spectral.back(np.asarray(rotated)), theta, rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        jnp.linalg.norm(rotated, axis=1), jnp.linalg.norm(theta, axis=1), rtol=1e-14
    )
    velocity = np.asarray(jax.vmap(there.velocity)(rotated))
    expected = jax.vmap(system.velocity)(theta)
    np.testing.assert_allclose(spectral.back(velocity), expected, rtol=0, atol=1e-12)
    for other in (lt.ConvolutionalNetwork.zeros(d, (2, d)), lt.DiagonalNetwork.zeros(2, d)):
        assert Spectral.of(other, problem) is None


@pytest.mark.slow_beyond(1)
# From d = 13 on by FFT, which XLA cannot compile just before linear algebra of its transpose.
@pytest.mark.parametrize("d", [5, 13])
def test_full_length_convolutions_end_where_single_flows_do(d):
    rng = np.random.default_rng(5)
    networks = starts(lt.ConvolutionalNetwork.zeros(d, (d, d)), 4)
    X, y = jnp.asarray(rng.standard_normal((4, 2, d))), jnp.asarray(rng.standard_normal((4, 2)))
    flow = batched_flow(networks, jax.vmap(lt.Regression)(X, y), shared_problem=False)
    assert (flow.invariant_drift < 1e-7).all()
    for k in (0, 3):
        single = lt.gradient_flow(lane(networks, k), lt.Regression(X[k], y[k]))
        np.testing.assert_allclose(flow.coefficients[k], single.coefficients[-1], rtol=0, atol=1e-8)


@pytest.mark.slow
def test_classification_on_the_log_arc_length_clock():
    networks = starts(NETWORKS["diagonal"], 5)
    flow = batched_flow(networks, TOY, stop=lt.StopAtMargin(10.0), rtol=1e-8)
    assert set(names(flow)) == {"margin"}
    assert flow.log_margin is not None
    for k in (0, 3):
        single = lt.gradient_flow(lane(networks, k), TOY, stop=lt.StopAtMargin(10.0))
        assert single.log_margin is not None
        # Both end at their first step beyond the margin, and these steps differ. So directions are
        # compared up to their change between two steps.
        assert flow.log_margin[k] >= np.log(10)
        direction = flow.coefficients[k] / jnp.linalg.norm(flow.coefficients[k])
        np.testing.assert_allclose(direction, single.direction[-1], rtol=0, atol=1e-3)
        assert flow.invariant_drift[k] < 1e-7


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("how", [XLA(), Native()])
def test_a_bad_lane_costs_its_neighbours_nothing(how):
    networks = starts(NETWORKS["diagonal"], 7)
    weights = networks.weights.at[2].set(jnp.nan).at[4].set(0.0)
    bad = eqx.tree_at(lambda n: n.weights, networks, weights)
    options: dict[str, Any] = {"finish": None, "width": 8, "max_steps": 200, "compilation": how}
    good = batched_flow(networks, PROBLEM, **options)
    flow = batched_flow(bad, PROBLEM, **options)
    assert names(flow)[2] == "non_finite"
    assert names(flow)[4] == "stationary"
    others = np.array([0, 1, 3, 5, 6])
    np.testing.assert_array_equal(flow.coefficients[others], good.coefficients[others])
    assert [names(flow)[k] for k in others] == ["residual"] * 5
    options["max_steps"] = 3
    short = batched_flow(networks, PROBLEM, **options)
    assert set(names(short)) == {"max_steps"}
    assert (short.num_steps == 3).all()


@pytest.mark.slow
def test_neither_order_nor_neighbours_matter():
    """The bits are equal at one width, as every lane goes through the same vector instructions."""
    networks = starts(NETWORKS["fully-connected"], 20)
    order = np.random.default_rng(3).permutation(20)
    options: dict[str, Any] = {"finish": None, "compilation": XLA()}
    first = batched_flow(networks, PROBLEM, width=8, **options)
    shuffled = batched_flow(lane(networks, order), PROBLEM, width=8, **options)
    np.testing.assert_array_equal(shuffled.coefficients, first.coefficients[order])
    np.testing.assert_array_equal(shuffled.num_steps, first.num_steps[order])
    wide = batched_flow(networks, PROBLEM, width=24, **options)
    np.testing.assert_allclose(wide.coefficients, first.coefficients, rtol=0, atol=1e-8)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("how", [XLA(), Native()])
def test_a_problem_for_every_lane(how):
    networks = starts(NETWORKS["convolution"], 4)
    X, y = RNG.standard_normal((4, 1, 2)), RNG.standard_normal((4, 1))
    problems = jax.vmap(lt.Regression)(jnp.asarray(X), jnp.asarray(y))
    flow = batched_flow(networks, problems, shared_problem=False, compilation=how)
    for k in range(4):
        single = lt.gradient_flow(lane(networks, k), lt.Regression(X[k], y[k]))
        np.testing.assert_allclose(flow.coefficients[k], single.coefficients[-1], rtol=0, atol=1e-8)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("how", [XLA(), Native()])
def test_more_lanes_than_one_program_takes(monkeypatch, how):
    networks = starts(NETWORKS["diagonal"], 45)
    whole = batched_flow(networks, PROBLEM, width=8, compilation=how)
    monkeypatch.setattr(hardware, "_CHUNK", 16)
    parts = batched_flow(networks, PROBLEM, width=8, compilation=how)
    np.testing.assert_array_equal(parts.coefficients, whole.coefficients)
    np.testing.assert_array_equal(parts.num_steps, whole.num_steps)
    assert names(parts) == names(whole)


class Chosen(eqx.Module):
    """A network with constants of all kinds; its coefficients are weights[0] * weights[1]."""

    weights: Any
    mask: Any = lt.constant()
    name: str = "chosen"
    depth: int = eqx.field(static=True, default=2)

    def linear_coefficients(self):
        product = self.weights[0] * self.weights[1] * (1 + (self.mask & 7)) / 3
        return jax.lax.cond(self.mask[0] > 2, lambda x: x, lambda x: 2 * x, product)


@pytest.mark.slow_beyond(1)
@pytest.mark.filterwarnings("ignore:batched_flow. XLA runs the lanes of Chosen")
@pytest.mark.parametrize("how", [XLA(), Native()])
def test_constants_have_no_lanes(how, monkeypatch):
    """Constants stay unchanged in several chunks, also integers with more digits than floats."""
    monkeypatch.setattr(hardware, "_CHUNK", 16)
    mask = jnp.array([2**62 + 2, 2**62 + 2])
    weights = 0.3 * RNG.standard_normal((40, 2, 2))
    networks = Chosen(jnp.asarray(weights), mask)
    flow = batched_flow(networks, PROBLEM, compilation=how, width=8)
    np.testing.assert_array_equal(flow.network.mask, mask)
    assert flow.compilation == "xla"
    assert ("more digits" in flow.fallback_reason) == isinstance(how, Native)
    assert flow.network.name == "chosen"
    again = batched_flow(flow.network, PROBLEM, compilation=how, width=8)
    np.testing.assert_array_equal(again.num_steps, 0)
    for k in (0, 39):
        single = lt.gradient_flow(Chosen(weights[k], mask), PROBLEM)
        np.testing.assert_allclose(flow.coefficients[k], single.coefficients[-1], rtol=0, atol=1e-8)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("how", [XLA(), Native()])
def test_lanes_at_rest_say_why(how):
    """Only lanes at rest are examined; here no beta separates the samples."""
    contradiction = lt.Classification(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, -1.0]))
    networks = starts(NETWORKS["diagonal"], 5)
    flow = batched_flow(networks, contradiction, width=8, compilation=how)
    assert set(names(flow)) == {"not_separable"}
    assert (flow.num_steps < 500).all()


@pytest.mark.slow
def test_devices_do_not_matter():
    """The bits are equal. This runs in a new process, as devices are set before any computation."""
    program = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 3)
import lintensor_jax as lt
from lintensor_jax.dynamics.batch.batched_flow import batched_flow
from lintensor_jax.dynamics.batch.programs import XLA, Native
from lintensor_jax.initialization import gaussian
keys = jax.random.split(jax.random.key(1), 100)
assert len(jax.local_devices()) == 3
for like in (lt.DiagonalNetwork.zeros(2, 3), lt.ConvolutionalNetwork.zeros(3, (3, 3))):
    networks = jax.vmap(lambda key: gaussian(like, key, 0.3))(keys)
    problem = lt.Regression(np.array([[1.0, 2.0, -1.0]]), np.array([1.0]))
    for compilation in (XLA(), Native()):
        common = {"width": 8, "compilation": compilation}
        one = batched_flow(networks, problem, **common)
        three = batched_flow(networks, problem, devices=jax.local_devices(), **common)
        np.testing.assert_array_equal(one.coefficients, three.coefficients)
        np.testing.assert_array_equal(one.num_steps, three.num_steps)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_refuses_what_does_not_compile():
    networks = starts(NETWORKS["diagonal"], 2)
    for compilation in ("native", Native):
        with pytest.raises(ValueError, match=r"compilation: must be Native\(\) or XLA\(\), got"):
            batched_flow(networks, PROBLEM, compilation=compilation)  # pyright: ignore[reportArgumentType]
    for threads in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="Native: threads must be a positive int"):
            Native(threads=threads)  # pyright: ignore[reportArgumentType]


def test_refuses_methods_that_do_not_fit():
    networks = starts(NETWORKS["diagonal"], 2)
    for solver in (diffrax.Kvaerno5(), diffrax.Heun()):
        with pytest.raises(ValueError, match=r"solver: .*FSAL"):
            batched_flow(networks, PROBLEM, solver=solver)  # pyright: ignore[reportArgumentType]


def test_refuses_lanes_that_do_not_fit():
    networks = starts(NETWORKS["diagonal"], 3)
    four = jax.vmap(lt.Regression)(jnp.ones((4, 1, 2)), jnp.ones((4, 1)))
    wide = starts(lt.DiagonalNetwork.zeros(2, 3), 3)
    convolutions = starts(lt.ConvolutionalNetwork.zeros(4, (4, 4)), 3)
    cases: Any = (
        (lane(networks, slice(0)), PROBLEM, {}, r"networks: .* one or more lanes, got \(0, 2, 2\)"),
        (networks.weights, PROBLEM, {}, "networks: must be an equinox.Module"),
        (
            networks,
            PROBLEM,
            {"shared_problem": False},
            r"problem: .* axis of 3 lanes, got \(1, 2\)",
        ),
        (
            networks,
            four,
            {"shared_problem": False},
            r"problem: .* axis of 3 lanes, got \(4, 1, 2\)",
        ),
        (wide, PROBLEM, {}, r"network: its linear coefficients have shape \(3,\)"),
        (networks, PROBLEM, {"width": 0}, "width: must be a positive int, got 0"),
        (networks, 3, {}, "problem: must be an object such as .*Regression"),
        (networks, PROBLEM, {"devices": []}, "devices: must be a sequence of one or more"),
        (convolutions, PROBLEM, {}, r"network: its linear coefficients have shape \(4,\)"),
    )
    for given, problem, options, words in cases:
        with pytest.raises(ValueError, match=words):
            batched_flow(given, problem, **options)
    with pytest.raises(TypeError, match="no option 'saveat'; it has atol, clock"):
        batched_flow(networks, PROBLEM, saveat=1.0)
