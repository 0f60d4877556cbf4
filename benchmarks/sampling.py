"""A profile by samples of CPU time: what Python function was running, as often as the kernel's clock lets us look.

Nothing but the sample itself is added to what is measured, so shares are shares of the real time; cProfile makes small functions look dear.
What C code spends between two Python functions (the event loop's polling and reading) counts for the function that runs next.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from types import FrameType

_EVERY_S = 0.001
_DEPTH_MAX = 60


class Sampler:
    """Collects stacks, outermost function first, until it is stopped."""

    def __init__(self) -> None:
        self._stacks: Counter[tuple[str, ...]] = Counter()

    def start(self) -> None:
        """Begins; only in the main thread."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)

    def stop(self) -> None:
        """Ends; safe to call twice."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def clear(self) -> None:
        """Forgets what was collected, such as the warming up."""
        self._stacks.clear()

    def save(self, path: Path) -> None:
        """Writes the stacks with their counts."""
        path.write_text(json.dumps([[list(stack), count] for stack, count in self._stacks.items()]))

    def _sample(self, _: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and len(stack) < _DEPTH_MAX:
            stack.append(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        self._stacks[tuple(reversed(stack))] += 1
