"""A compiled program for CUDA, which is not used before it has agreed with XLA."""

import threading
from collections.abc import Callable
from typing import Any

from . import launcher


class CheckedKernel:
    """The kernels of one program on one device.

    - `launch`: integrates the rows of a table; see `launcher.Launch`.
    - `refusal`: why the kernel is no longer used; "" as long as it is used.
    """

    def __init__(self, text: str, device: Any):
        self.launch = launcher.load(text, device)
        self.refusal = ""
        self._agreed = False
        self._lock = threading.Lock()

    def refuse(self, reason: str) -> str:
        """Stop the use of the kernel; returns the reason, the first one if there are several."""
        with self._lock:
            self.refusal = self.refusal or f"machine code for CUDA is not used: {reason}"
            return self.refusal

    def checked(self, compare: Callable[[], str]) -> str:
        """Compare the kernel with XLA at its first use; returns `refusal`.

        `compare` returns the disagreement in words, or "".
        """
        with self._lock:
            if not self._agreed and not self.refusal:
                different = compare()
                self._agreed = not different
                if different:
                    self.refusal = f"machine code for CUDA is not used: {different}"
            return self.refusal
