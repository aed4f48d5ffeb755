"""The programs of a batch as a GPU would get them, taken from `batched_flow` without a GPU."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import batched_flow as batched_flow_module
from lintensor_jax.dynamics.batch import ends_by_machine_code, hardware
from lintensor_jax.dynamics.batch.cuda import launcher
from lintensor_jax.dynamics.batch.programs import Arguments, Native

METHODS = {"Tsit5": diffrax.Tsit5, "Dopri8": diffrax.Dopri8}
MARGIN = 1e6


class _CaughtError(Exception):
    pass


def _network(name: str, depth: int, d: int) -> Any:
    if name == "diagonal":
        return lt.DiagonalNetwork.zeros(depth, d)
    if name == "convolution":
        return lt.ConvolutionalNetwork.zeros(d, (d,) * depth)
    if name == "fully connected":
        return lt.FullyConnectedNetwork.zeros((d,) * depth)
    if name == "differential diagonal":
        return lt.DifferentialDiagonalNetwork(jnp.zeros(d), jnp.zeros(d), depth)
    rng = np.random.default_rng(7)
    data = jnp.asarray(rng.standard_normal((d,) * (depth + 1)))
    return lt.TensorNetwork(data, jnp.zeros((depth, d)))


#: Networks of the tables: name, layers, dimension, samples.
SIZES = (
    ("diagonal", 2, 2, 1),
    ("convolution", 2, 2, 1),
    ("fully connected", 2, 2, 1),
    ("differential diagonal", 3, 2, 1),
    ("tensor", 2, 2, 1),
    ("diagonal", 3, 2, 1),
    ("diagonal", 2, 4, 2),
    ("diagonal", 2, 8, 4),
)


def in_words(name: str, depth: int, d: int, n: int) -> str:
    """The name of a network and its data in a table."""
    return f"{name}, L = {depth}, d = {d}, n = {n}"


def problem(d: int, n: int, classification: bool = False) -> Any:
    """Data of the paper (Yun et al. 2021) for d = 2 and n = 1, else normal random data."""
    rng = np.random.default_rng(0)
    X = np.array([[1.0, 2.0]]) if (d, n) == (2, 1) else rng.standard_normal((n, d)) / np.sqrt(d)
    if classification:
        return lt.Classification(np.concatenate([X, X[:1] + 1.0]), np.ones(n + 1))
    return lt.Regression(X, np.ones(n))


def starts(name: str, depth: int, d: int, count: int, seed: int = 0) -> Any:
    """Networks with normal parameters times alpha, log-uniform in 0.01 to 1."""
    like = _network(name, depth, d)
    parameters, rest = lt.networks.split(like)
    leaves, structure = jax.tree.flatten(parameters)
    rng = np.random.default_rng(seed)
    alpha = np.exp(rng.uniform(np.log(0.01), 0.0, count))
    drawn = [rng.standard_normal((count, *leaf.shape)) for leaf in leaves]
    drawn = [jnp.asarray(x * alpha.reshape(-1, *[1] * (x.ndim - 1))) for x in drawn]
    return eqx.combine(jax.tree.unflatten(structure, drawn), rest)


@contextlib.contextmanager
def as_on_a_gpu(**patches: Any) -> Iterator[None]:
    """Treat all devices as CUDA devices. `patches` replace names of `batched_flow`'s module."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(hardware, "kind_of", return_value="cuda"))
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(batched_flow_module, name, value))
        yield


def stepper_and_chunk(networks: Any, data: Any, **options: Any) -> tuple[Any, Any]:
    """The stepper and the chunk that `batched_flow` passes to the program of its first chunk."""
    caught: list[Any] = []

    def catch(prepared, chunk):
        caught.extend((prepared.stepper, chunk))
        raise _CaughtError

    with as_on_a_gpu(integrate_chunk=catch), contextlib.suppress(_CaughtError):
        lt.batched_flow(networks, data, **options)
    return caught[0], caught[1]


def text_of(networks: Any, data: Any, **options: Any) -> str:
    """The kernels of a batch in PTX; a ValueError with the reason if there are none."""
    stepper, chunk = stepper_and_chunk(networks, data, **options)
    texts: list[str] = []

    def load(text, device):
        texts.append(text)
        raise launcher.Unavailable("only its text is wanted")

    with as_on_a_gpu(), mock.patch.object(launcher, "load", load):
        given = Arguments(stepper.of_any_width()), Arguments(chunk)
        refusal = ends_by_machine_code._rows_by_xla(*given, Native())
    if not texts:
        raise ValueError(refusal.reason)
    return texts[0]


#: Instructions of XLA's programs that start no kernel.
_NO_KERNEL = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}
_NO_KERNEL |= {"while", "conditional", "call", "copy-done", "opt-barrier"}
_OPERATION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\(")


def kernels_of_a_step(text: str) -> tuple[int, int]:
    """Numbers of kernels and of host decisions in a turn of an XLA program's innermost loop.

    `text`: the compiled program in XLA's language (HLO). A loop's condition is one decision a turn,
    and so is every branch in it.
    """
    parts: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            name = head[1]
            parts[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None and (found := _OPERATION.match(line)):
            parts[name].append(f"{found[1]} {line}")

    def named(line: str, key: str) -> str:
        return re.findall(rf"{key}=%?([\w.\-]+)", line)[0]

    def counted(name: str) -> tuple[int, int]:
        kernels = decisions = 0
        for line in parts[name]:
            operation = line.split(" ", 1)[0]
            inner = counted(named(line, "to_apply")) if operation == "call" else (0, 0)
            kernels += inner[0] + (operation not in _NO_KERNEL)
            decisions += inner[1] + (operation in ("while", "conditional"))
        return kernels, decisions

    loops = [line for lines in parts.values() for line in lines if line.startswith("while ")]
    bodies = {named(line, "body"): named(line, "condition") for line in loops}
    inner = [body for body in bodies if not any(line.startswith("while ") for line in parts[body])]
    (body,) = inner
    (kernels, decisions), (of_condition, _) = counted(body), counted(bodies[body])
    return kernels + of_condition, decisions + 1
