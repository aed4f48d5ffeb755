"""Figure 3 of Ji & Telgarsky 2019: alignment of the layers of a nonlinear network.

The paper trains AlexNet on CIFAR-10. Here a fully-connected ReLU network without biases learns the
digits that scikit-learn bundles, or CIFAR-10 where the user has a copy.
"""

import dataclasses
import importlib.util
import itertools
import pickle
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...config import Config, ConfigError, Integer, ListOf, Number, Rejected, setting
from ...networks import FullyConnectedNetwork
from ...theory.classification.alignment import alignment

MISSING = "scikit-learn, which bundles the digits (pip install lintensor_jax[digits])"
_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder's path, or an empty string."""

    def read(self, value):
        """The path as text, or `Rejected`."""
        return value if isinstance(value, str) else Rejected("a folder's path, or empty", value)


@dataclasses.dataclass(frozen=True)
class ImagesTask(Config):
    """Stochastic gradient descent with momentum on the mean cross-entropy of `batch` images."""

    cifar10: str = setting("", _Folder())
    num_images: int = setting(50_000, Integer(_CLASSES))
    widths: tuple[int, ...] = setting((64, 64), ListOf(Integer(1)))
    frobenius_norm: float = setting(4.0, Number(above=0))
    learning_rate: float = setting(0.05, Number(above=0))
    momentum: float = setting(0.9, Number(above=0))
    batch: int = setting(64, Integer(1))
    num_epochs: int = setting(30, Integer(1))
    final_risk: float = setting(0.05, Number(above=0))

    def check(self) -> None:
        """The folder holds CIFAR-10, and the momentum is below 1."""
        if self.momentum >= 1:
            raise ConfigError("momentum", f"must be < 1, got {self.momentum:g}; 0.9 is usual.")
        if self.cifar10 and not batch_files(self.cifar10):
            raise ConfigError(
                "cifar10",
                f"must be a folder with data_batch_1 ... data_batch_5 as distributed for Python, "
                f"got {self.cifar10!r}; unpack cifar-10-python.tar.gz, or leave it empty.",
            )


def is_available(task: ImagesTask) -> bool:
    """Whether there are images: the user's CIFAR-10, or the digits of scikit-learn."""
    return bool(task.cifar10) or importlib.util.find_spec("sklearn") is not None


def batch_files(folder: str) -> list[Path]:
    """The training batches of CIFAR-10 in `folder`, in order."""
    return sorted(Path(folder).glob("data_batch_[1-5]"))


def load_images(task: ImagesTask) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, pixels), scaled to mean square 1 over all pixels, and labels (n,) in 0..9."""
    if task.cifar10:
        batches = [_unpickle(path) for path in batch_files(task.cifar10)]
        pixels = np.concatenate([np.asarray(batch[b"data"]) for batch in batches])
        labels = np.concatenate([np.asarray(batch[b"labels"]) for batch in batches])
    else:
        from sklearn.datasets import load_digits

        bundled: Any = load_digits()
        pixels, labels = bundled.data, bundled.target
    centred = pixels[: task.num_images] / pixels.max()
    centred = centred - centred.mean()
    return centred / np.sqrt(np.mean(centred**2)), labels[: task.num_images].astype(int)


class _ArraysOnly(pickle.Unpickler):
    """Reads only pickled arrays and plain containers. Other pickles can run any program."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module, name):
        if module.split(".")[0] not in ("numpy", "_codecs") or name not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        # The NumPy that wrote the batches called this module `core`; today it is `_core`.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(path):
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        if np.asarray(batch[b"data"]).shape != (len(batch[b"labels"]), 3072):
            raise ValueError("data must have shape (n, 3072) with one label a row")
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            "images.cifar10",
            f"holds {path.name}, which is no batch of CIFAR-10 ({error}); unpack "
            "cifar-10-python.tar.gz again.",
        ) from None
    return batch


@dataclasses.dataclass(frozen=True)
class ImageRun:
    """One training run. Rows are epochs; the first row is the start."""

    start: str
    images: str
    risk: np.ndarray  # (E,), mean cross-entropy over all images
    accuracy: np.ndarray  # (E,), on the training images
    ratios: np.ndarray  # (E, L), |W_k|_2 / |W_k|_F
    overlaps: np.ndarray  # (E, L-1), <v_{k+1}, u_k>^2
    shapes: tuple[tuple[int, ...], ...]


def initial_networks(pixels: int, task: ImagesTask, seed: int) -> dict[str, FullyConnectedNetwork]:
    """The paper's two starts: PyTorch's default; Gaussian layers of equal Frobenius norm."""
    rng = np.random.default_rng(seed)
    widths = (pixels, *task.widths, _CLASSES)
    shapes = list(itertools.pairwise(widths))
    uniform = [rng.uniform(-1, 1, shape) / np.sqrt(shape[0]) for shape in shapes]
    normal = [rng.normal(size=shape) for shape in shapes]
    equal = [task.frobenius_norm * w / np.linalg.norm(w) for w in normal]
    return {
        "default start": FullyConnectedNetwork(uniform),
        "equal Frobenius norms": FullyConnectedNetwork(equal),
    }


def train(start: str, network: FullyConnectedNetwork, task: ImagesTask, seed: int) -> ImageRun:
    """Train in float32; measure the alignment of the layers after every epoch."""
    pixels, labels = load_images(task)
    images, labels = jnp.asarray(pixels, jnp.float32), jnp.asarray(labels)
    trained = jax.tree.map(lambda w: w.astype(jnp.float32), network)
    state: Any = _optimizer(task).init(trained)  # pyright: ignore[reportArgumentType]
    rows = [_measure(trained, images, labels)]
    for index in range(task.num_epochs):
        key = jax.random.fold_in(jax.random.key(seed), index)
        trained, state = _epoch(trained, state, images, labels, key, task)
        rows.append(_measure(trained, images, labels))
    risk, accuracy, ratios, overlaps = (np.stack(column) for column in zip(*rows, strict=True))
    shapes = tuple(w.shape for w in network.weights)
    name = "CIFAR-10" if task.cifar10 else "digits"
    return ImageRun(start, name, risk, accuracy, ratios, overlaps, shapes)


def _optimizer(task):
    return optax.sgd(task.learning_rate, task.momentum)


def _logits(network, images):
    return jax.vmap(lambda image: network(image, jax.nn.relu))(images)


def _risk(network, images, labels):
    return _mean_cross_entropy(_logits(network, images), labels)


def _mean_cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@eqx.filter_jit
def _measure(network, images, labels):
    measured = alignment(network)
    logits = _logits(network, images)
    return (
        _mean_cross_entropy(logits, labels),
        jnp.mean(jnp.argmax(logits, axis=1) == labels),
        measured.rank_one_ratios,
        measured.overlaps,
    )


@eqx.filter_jit
def _epoch(network, state, images, labels, key, task):
    # Images that do not fill a whole batch are left out of this epoch.
    batch = min(task.batch, labels.shape[0])
    order = jax.random.permutation(key, labels.shape[0])
    order = order[: labels.shape[0] // batch * batch].reshape(-1, batch)

    def step(carry, chosen):
        network, state = carry
        gradient = jax.grad(_risk)(network, images[chosen], labels[chosen])
        updates, state = _optimizer(task).update(gradient, state, network)
        return (optax.apply_updates(network, updates), state), None

    return jax.lax.scan(step, (network, state), order)[0]
