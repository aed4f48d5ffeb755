"""Workers of a cluster that die after they wrote their chunk, before they are asked for it."""

import shutil
from typing import Any

import pytest

from lintensor_jax.sweeps.execution import drive
from lintensor_jax.sweeps.store.store import Store

distributed = pytest.importorskip("distributed")


class Lost:
    """The future of a task that was finished, and whose worker has died."""

    status = "lost"

    def __init__(self, key: str):
        self.key = key

    def exception(self) -> None:
        """None: the task was run again."""

    def result(self) -> Any:
        raise AssertionError("the result was fetched from a worker")


class Client:
    """A client whose workers have computed everything."""

    loop = None

    def submit(self, function: Any, *arguments: Any, key: str, **options: Any) -> Lost:
        return Lost(key)

    def scheduler_info(self) -> dict[str, Any]:
        return {"workers": {}}

    def nthreads(self) -> dict[str, int]:
        return {}


class Completed(list):
    """Futures in the order in which they were added."""

    def __init__(self, **options: Any):
        super().__init__()

    def add(self, future: Lost) -> None:
        self.append(future)


def test_a_lost_task_is_a_finished_chunk(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "as_completed", Completed)
    store = Store(shutil.copytree(whole[0], tmp_path / "store"))
    watched = drive.Watched(store, lambda progress: None, 1)
    watched.lanes, watched._seen = 0, set()
    drive.in_cluster(Client(), store, range(4), None, watched)
    assert watched.lanes == 60
