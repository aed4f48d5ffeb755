"""A first call compiles few programs: outside of `jax.jit`, each operation of JAX would be one."""

import gc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt

DIAGONAL = lt.DiagonalNetwork(jnp.array([[0.1, 0.2], [0.2, 0.1]]))
CONVOLUTION = lt.ConvolutionalNetwork.zeros(3, (3, 3))
MATRICES = lt.FullyConnectedNetwork((jnp.eye(3), 0.1 * jnp.eye(3), jnp.ones(3)))
TWO_MATRICES = lt.FullyConnectedNetwork((0.1 * jnp.eye(2), jnp.zeros(2)))
PAPER = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
BETA = jnp.array([1.0, -2.0, 0.5])
ALPHAS = jnp.array([0.5, 1.0])


def limits_of_scales():
    """In `jax.vmap` outside of `jax.jit`."""
    return jax.vmap(lambda a: lt.gradient_flow(DIAGONAL.scaled(a), PAPER).coefficients)(ALPHAS)


# A call, and the most programs that it may compile. With one program for each operation they were
# 20, 18, 16, 28, 60, 49 and 46.
CALLS: dict[str, tuple[Callable, int]] = {
    "balanced": (lambda: lt.initialization.balanced(MATRICES, BETA), 6),
    "matching, matrices": (lambda: lt.initialization.matching(MATRICES, BETA), 6),
    "matching, convolution": (lambda: lt.initialization.matching(CONVOLUTION, BETA), 6),
    "gradient_flow, two scales": (limits_of_scales, 14),
    "mirror_flow": (lambda: lt.mirror_flow(DIAGONAL, PAPER), 20),
    "alignment": (lambda: lt.alignment(MATRICES), 6),
    "predict, matrices": (lambda: lt.predict(TWO_MATRICES, PAPER), 22),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_first_call_compiles_few_programs(name):
    call, most = CALLS[name]
    compiled: list[str] = []

    def count(event: str, duration_secs: float, **kwargs: str | int):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.clear_caches()
    gc.collect()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        jax.block_until_ready(call())
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert 0 < len(compiled) <= most
