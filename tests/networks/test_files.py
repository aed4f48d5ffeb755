"""Networks in files: saving and loading keeps every bit, and refusals are clear."""

import json
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape))


class Inner(eqx.Module):
    """A part of a user's network, with a static field."""

    scale: jax.Array
    kind: str = eqx.field(static=True, default="plain")


class Own(eqx.Module):
    """A user's network: nested, with a constant, a plain number, a function and a NumPy array."""

    layers: dict
    inner: Inner
    basis: jax.Array = lt.constant()
    host: np.ndarray = lt.constant()
    shift: float = 0.5
    activation: object = jnp.tanh
    depth: int = eqx.field(static=True, default=2)

    def linear_coefficients(self):
        return self.inner.scale * self.layers["u"] * self.layers["v"]


def own(seed=0):
    rng = np.random.default_rng(seed)
    u, v, basis = (jnp.asarray(rng.standard_normal(3)) for _ in range(3))
    return Own({"u": u, "v": v}, Inner(u[0]), basis, rng.standard_normal(2), float(seed))


NETWORKS = {
    "diagonal": lambda: lt.DiagonalNetwork(normal(2, 3)),
    "short filters": lambda: lt.ConvolutionalNetwork((normal(2), normal(4))),
    "fully connected": lambda: lt.FullyConnectedNetwork((normal(3, 4), normal(4, 2))),
    "tensor": lambda: lt.TensorNetwork(normal(2, 3, 4), (normal(2), normal(3))),
    "differential": lambda: lt.DifferentialDiagonalNetwork(normal(3), normal(3), 3),
    "own": own,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_bit_by_bit(name, tmp_path):
    network = NETWORKS[name]()
    like = jax.tree.map(lambda x: jnp.zeros_like(x) if isinstance(x, jax.Array) else x, network)
    lt.save(tmp_path / "network", network)
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
    loaded = lt.load(str(tmp_path / "network"), like)
    assert type(loaded) is type(network)
    assert eqx.tree_equal(loaded, network)


def test_plain_numbers_and_host_arrays_come_from_the_file_and_functions_from_like(tmp_path):
    lt.save(tmp_path / "a", own(1))
    like = eqx.tree_at(lambda n: n.activation, own(2), jnp.sin)
    loaded = lt.load(tmp_path / "a", like)
    assert loaded.shift == 1.0
    assert isinstance(loaded.host, np.ndarray)
    assert loaded.activation is jnp.sin
    assert eqx.tree_equal(eqx.filter(loaded, eqx.is_array), eqx.filter(own(1), eqx.is_array))


def test_the_template_may_be_of_shapes_only(tmp_path):
    network = lt.DiagonalNetwork(normal(2, 3))
    lt.save(tmp_path / "a", network)
    like = eqx.filter_eval_shape(lambda: lt.DiagonalNetwork.zeros(2, 3))
    assert eqx.tree_equal(lt.load(tmp_path / "a", like), network)


def test_a_network_of_a_flow_that_diverged_can_be_saved(tmp_path):
    network = eqx.tree_at(
        lambda n: n.weights, lt.DiagonalNetwork.zeros(2, 2), jnp.full((2, 2), jnp.nan)
    )
    lt.save(tmp_path / "a", network)
    assert jnp.isnan(lt.load(tmp_path / "a", lt.DiagonalNetwork.zeros(2, 2)).weights).all()


CHAIN = (np.ones((2, 2)), np.ones((2, 2)))
OTHERS = {
    "class": (
        lt.MatrixFactorizationNetwork(CHAIN),
        ["class", "FullyConnectedNetwork", "MatrixFactorizationNetwork"],
    ),
    "more layers": (lt.FullyConnectedNetwork((*CHAIN, np.ones((2, 2)))), ["depth", "2", "3"]),
    "shape": (
        lt.FullyConnectedNetwork((np.ones((2, 3)), np.ones((3, 2)))),
        ["shape of weights[0]", "(2, 2)", "(2, 3)"],
    ),
    "dtype": (
        lt.FullyConnectedNetwork([np.ones((2, 2), np.float32)] * 2),
        ["dtype of weights[0]", "float64", "float32"],
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_network_is_refused_with_the_first_difference(what, tmp_path):
    like, words = OTHERS[what]
    lt.save(tmp_path / "a", lt.FullyConnectedNetwork(CHAIN))
    with pytest.raises(ValueError, match="load: like must have") as caught:
        lt.load(tmp_path / "a", like)
    for word in words:
        assert word in str(caught.value)


def test_static_fields_and_the_names_of_arrays_are_compared(tmp_path):
    lt.save(tmp_path / "a", lt.DifferentialDiagonalNetwork(np.ones(2), np.ones(2), 2))
    with pytest.raises(ValueError, match="static fields"):
        lt.load(tmp_path / "a", lt.DifferentialDiagonalNetwork(np.ones(2), np.ones(2), 3))
    lt.save(tmp_path / "a", own())
    with pytest.raises(ValueError, match=r"inner\.kind"):
        lt.load(tmp_path / "a", eqx.tree_at(lambda n: n.inner, own(), Inner(jnp.ones(()), "other")))
    with pytest.raises(ValueError, match=r"arrays.*'u'.*'w'"):
        lt.load(tmp_path / "a", eqx.tree_at(lambda n: n.layers, own(), {"u": 1.0, "w": 2.0}))


class Harmful:
    """Its pickle makes a folder when it is read."""

    def __reduce__(self):
        return (__import__("os").mkdir, ("made-by-a-pickle",))


def damaged(data):
    """Damaged files, made from the bytes of a good one, by the kind of damage."""
    header, _, arrays = data.partition(b"\n")
    other = {**json.loads(header), "version": 2}
    yield b"", "is no file of lintensor_jax.save"
    yield b"\x93NUMPY" + arrays, "is no file of lintensor_jax.save"
    yield b"[" * 100_000, "is no file of lintensor_jax.save"
    yield pickle.dumps(Harmful()), "is no file of lintensor_jax.save"
    yield json.dumps(other).encode() + b"\n" + arrays, "version 2"
    yield data[:-8], "cut or damaged"
    yield header + b"\n", "cut or damaged"
    yield header + b"\n" + pickle.dumps(Harmful()), "cut or damaged"
    yield data + b"more", "4 bytes too many"


def test_wrong_files_are_refused_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = lt.DiagonalNetwork(normal(2, 3))
    path = tmp_path / "a"
    lt.save(path, network)
    objects = np.empty(1, object)
    objects[0] = Harmful()
    np.save(tmp_path / "objects.npy", objects)
    cases = list(damaged(path.read_bytes()))
    header = path.read_bytes().partition(b"\n")[0]
    cases.append((header + b"\n" + (tmp_path / "objects.npy").read_bytes(), "cut or damaged"))
    for data, words in cases:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"load: path .*{words}"):
            lt.load(path, network)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "objects.npy"]


def test_a_failed_save_keeps_the_former_file(tmp_path, monkeypatch):
    network = lt.DiagonalNetwork(normal(2, 3))
    lt.save(tmp_path / "a", network)

    def no_space(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match="no space"):
        lt.save(tmp_path / "a", network.scaled(2.0))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert eqx.tree_equal(lt.load(tmp_path / "a", network), network)


def test_arguments_are_checked(tmp_path):
    network = lt.DiagonalNetwork(normal(2, 3))
    with pytest.raises(FileNotFoundError, match=r"load: path .*absent: no such file"):
        lt.load(tmp_path / "absent", network)
    with pytest.raises(ValueError, match="save: network must be a network"):
        lt.save(tmp_path / "a", {"w": np.ones(2)})  # pyright: ignore
    with pytest.raises(ValueError, match="save: network must hold concrete arrays"):
        jax.jit(lambda w: lt.save(tmp_path / "a", lt.DiagonalNetwork(w)))(np.ones((2, 2)))
    with pytest.raises(ValueError, match="load: like must be a network"):
        lt.load(tmp_path / "a", lt.DiagonalNetwork)  # pyright: ignore
