"""Flows under `jax.vmap` and `jax.jit`: batches, compilations, single precision, the import."""

import json
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import lintensor_jax as lt
from lintensor_jax.dynamics import integrate
from lintensor_jax.initialization import gaussian

D, N = 3, 2
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
LABELS = np.array([1.0, -1.0])
REGRESSION = lt.Regression(X, Y)
CLASSIFICATION = lt.Classification(X, LABELS)


class Product(eqx.Module):
    """A user's network without the base class."""

    u: Array
    v: Array
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v


START = gaussian(lt.DiagonalNetwork.zeros(2, D), jax.random.key(1), 0.5)


@pytest.mark.slow
def test_float32():
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), START)
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    problem = lt.Regression(x, y)
    solution = lt.gradient_flow(single, problem)
    assert {leaf.dtype for leaf in jax.tree.leaves(solution) if eqx.is_inexact_array(leaf)} == {
        jnp.dtype("float32")
    }
    reference = lt.gradient_flow(START, REGRESSION)
    # rtol is 1e-5, 100 times smaller than the bound on the limit's error.
    assert np.abs(solution.coefficients[-1] - reference.coefficients[-1]).max() < 1e-3
    assert solution.invariant_drift[-1] < 1e-3
    with pytest.raises(ValueError, match=r"rtol: float32 keeps.*jax_enable_x64"):
        lt.gradient_flow(single, problem, rtol=1e-10)
    labelled = lt.Classification(x, jnp.asarray(LABELS, jnp.float32))
    solution = lt.gradient_flow(single, labelled)
    assert solution.succeeded
    assert solution.coefficients.dtype == jnp.float32
    assert (LABELS * (X @ solution.direction[-1]) > 0).all()
    # A mixture of types is cast to the wider type.
    assert lt.gradient_flow(single, REGRESSION).coefficients.dtype == jnp.float64


@pytest.mark.slow
def test_vmap_over_networks_and_alpha_and_data():
    keys = jax.random.split(jax.random.key(3), 4)
    alphas = jnp.array([1e-3, 0.1, 1.0, 1.0])
    y = jnp.asarray(RNG.normal(size=(4, N)))

    def one(key, alpha, y):
        start = gaussian(START, key).scaled(alpha)
        return lt.gradient_flow(start, lt.Regression(X, y), saveat=[0.5, 40.0])

    batch = jax.vmap(one)(keys, alphas, y)
    assert batch.coefficients.shape == (4, 3, D)
    assert "Batch (4,) of gradient flows of DiagonalNetwork" in str(batch)
    assert "residual 4" in str(batch)
    for lane in range(4):
        single = one(keys[lane], alphas[lane], y[lane])
        assert (batch.status == single.status)[lane]
        kept = np.asarray(batch.reached[lane])
        assert kept.sum() == len(single.clock_time)
        # Compiled programs differ in the last bits. Where a flow leaves a saddle these differences
        # grow: two programs agree to the flow's tolerance, and at its end to more.
        np.testing.assert_allclose(
            batch.coefficients[lane][kept], single.coefficients, rtol=0, atol=1e-8
        )
        np.testing.assert_allclose(
            batch.coefficients[lane][-1], single.coefficients[-1], rtol=0, atol=1e-10
        )
        # A flow ends with the step in which its rule is met: the times may differ by a step.
        np.testing.assert_allclose(batch.clock_time[lane][kept], single.clock_time, rtol=0.2)
        np.testing.assert_array_equal(batch.clock_time[lane][kept][:-1], single.clock_time[:-1])
        # Times that are not reached repeat the end, without infinities.
        np.testing.assert_array_equal(
            batch.coefficients[lane][~kept],
            np.broadcast_to(batch.coefficients[lane][-1], ((~kept).sum(), D)),
        )
        assert np.isfinite(batch.clock_time[lane]).all()


@pytest.mark.slow
def test_vmap_over_alpha_of_a_classification():
    alphas = jnp.array([1e-6, 0.5, 2.0])

    def one(alpha) -> Any:
        return lt.gradient_flow(START.scaled(alpha), CLASSIFICATION, stop=lt.StopAtMargin(1e4))

    batch = jax.vmap(one)(alphas)
    assert (batch.status == lt.FlowStatus.margin).all()
    for lane, alpha in enumerate(alphas):
        single = one(alpha)
        # Compiled programs differ in the last bits, so other steps are rejected.
        assert abs(batch.stats["num_steps"][lane] - single.stats["num_steps"]) < 30
        assert abs(batch.log_margin[lane] - single.log_margin).max() < 1
        # The direction still changes by 1/margin.
        np.testing.assert_allclose(batch.direction[lane], single.direction, rtol=0, atol=1e-3)


@pytest.fixture
def segments(monkeypatch):
    """For every segment of the flows so far: whether its steps are implicit."""
    seen, solve_segment = [], integrate.solve_segment

    def recorded(*arguments, implicit, **named):
        seen.append(implicit)
        return solve_segment(*arguments, implicit=implicit, **named)

    monkeypatch.setattr(integrate, "solve_segment", recorded)
    return seen


def test_vmap_compiles_implicit_steps_only_if_a_lane_needs_them(segments):
    problem = lt.Regression([[1.0, 2.0, 0.5], [0.3, -1.0, 1.0]], [1.0, 0.7])
    weights = jnp.array([[0.8, 0.5, 0.3], [0.4, 0.9, 0.9], [0.7, 0.8, 0.7]])

    def one(alpha) -> Any:  # a plateau of length 1/alpha
        flow = lt.gradient_flow(lt.DiagonalNetwork(alpha * weights), problem)
        return flow.coefficients[-1], flow.stats["num_implicit_steps"]

    alphas = jnp.array([0.5, 1.0])
    of_one, steps = jax.vmap(one)(alphas)
    of_two, _ = jax.vmap(lambda c: jax.vmap(lambda a: one(a * c))(alphas))(jnp.ones(2))
    assert segments == [False, False]
    np.testing.assert_array_equal(steps, 0)
    # Other programs may take other steps. The limits' error at the default tolerances is 3e-11.
    np.testing.assert_allclose(of_two, jnp.stack([of_one, of_one]), rtol=0, atol=1e-9)
    jax.make_jaxpr(jax.jit(jax.vmap(one)))(alphas)  # values are not known
    assert segments[2:] == [False, True]
    stiff = jnp.array([0.5, 1e-4])
    limits, steps = jax.vmap(one)(stiff)
    assert segments[4:] == [False, True]
    assert steps[0] == 0 < steps[1]
    for lane, alpha in enumerate(stiff):
        np.testing.assert_allclose(limits[lane], one(alpha)[0], rtol=0, atol=1e-9)


@pytest.fixture
def compiles():
    """The number of backend compilations since the fixture started, as a list."""
    seen = []

    def listen(event: str, duration_secs: float, **kwargs: str | int):
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_one_compilation_serves_all_numbers(compiles):
    def run(k, alpha, rtol, target):
        rng = np.random.default_rng(k)
        u, v = jnp.asarray(alpha * rng.normal(size=(2, 4)))
        x, y = jnp.asarray(rng.normal(size=(2, 4))), jnp.asarray(rng.normal(size=2))
        stop = lt.StopAtResidual(target) | lt.StopAtTime(1e9)
        return lt.gradient_flow(Product(u, v), lt.Regression(x, y), rtol=rtol, stop=stop)

    # The comparison in this line compiles as well.
    assert run(0, 1.0, 1e-8, 1e-6).stats["num_implicit_steps"] == 0
    assert len(compiles) > 0
    compiles.clear()
    for k, (alpha, rtol, target) in enumerate(
        [(0.5, 1e-8, 1e-6), (2.0, 1e-6, 1e-4), (0.1, 1e-10, 1e-9)]
    ):
        assert run(k, alpha, rtol, target).stats["num_implicit_steps"] == 0
    assert compiles == []


IMPORT = """
import json, sys, time
before = set(sys.modules)
start = time.perf_counter()
import lintensor_jax
elapsed = time.perf_counter() - start
from jax._src import xla_bridge
print(json.dumps({
    "seconds": elapsed,
    "x64": __import__("jax").config.jax_enable_x64,
    "backends": len(xla_bridge._backends),
    "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
}))
"""


def test_import_is_light():
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["x64"] is False
    assert found["backends"] == 0
    unwanted = {"matplotlib", "rich", "clarabel", "scipy", "tomllib", "xarray", "zarr", "pandas"}
    assert not unwanted & set(found["modules"])
    # The budget is 2 s on a free machine; a loaded one gets three times that.
    assert found["seconds"] < 6


class Listed(eqx.Module):
    """A network with a static field that has no hash."""

    u: Array
    names: list = eqx.field(static=True)

    def linear_coefficients(self):
        """The coefficients u^2."""
        return self.u**2


@pytest.mark.slow
def test_a_static_field_need_not_have_a_hash():
    problem = lt.Regression([[1.0, 2.0]], [1.0])
    network: Any = Listed(jnp.asarray([0.3, 0.4]), ["left", "right"])
    end = lt.gradient_flow(network, problem)
    assert end.network.names == ["left", "right"]
    np.testing.assert_allclose(end.coefficients[-1] @ problem.X[0], 1.0, rtol=1e-12)
