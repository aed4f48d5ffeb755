"""Workers of `--cluster local:N` that Dask has given up."""

import threading

from lintensor_jax.cli import cluster


class Fake:
    """A cluster whose second worker starts only at the second request."""

    def __init__(self):
        self.asked: list[int] = []
        self.scheduler_info = {"workers": {"a": None}}
        self.whole = threading.Event()

    def scale(self, count: int) -> None:
        self.asked.append(count)
        if self.asked == [2, 1, 2]:
            self.scheduler_info = {"workers": {"a": None, "b": None}}
            self.whole.set()


def test_a_worker_that_died_while_it_started_is_replaced(monkeypatch):
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_CHECKS", 0.01)
    monkeypatch.setattr(cluster, "_SECONDS_WITHOUT_CHANGE", 0.05)
    fake = Fake()
    with cluster._workers_restarted(fake, 2):
        assert fake.whole.wait(10)
    assert fake.asked == [2, 1, 2]
