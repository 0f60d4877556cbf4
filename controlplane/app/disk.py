"""Free space on the data folder's disk: measured, shown, and said aloud before it is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from controlplane.metrics import LoopMetrics
from controlplane.settings import Settings


class DiskWatch:
    """Looks at the disk now and then; a word in the log when it becomes short, and one when it is well again."""

    def __init__(self, settings: Settings, metrics: LoopMetrics) -> None:
        self._folder = Path(settings.data_dir)
        self._least = settings.disk_free_bytes_min
        self._metrics = metrics
        self._short = False

    async def turn(self) -> None:
        """One look."""
        self.trouble()

    def trouble(self) -> str:
        """A sentence when the disk is short, else an empty text; safe to ask as often as a page is drawn."""
        free = shutil.disk_usage(self._folder).free
        self._metrics.disk_free_bytes.set(free)
        short, was = free < self._least, self._short
        self._short = short
        said = (
            f"the disk of {self._folder} has {free / 1024**3:.1f} GiB left; when it is full nothing is stored, "
            "and proxies keep their records until their spools are full"
        )
        if short and not was:
            structlog.get_logger("disk").warning("disk is short", folder=str(self._folder), free_bytes=free)
        if was and not short:
            structlog.get_logger("disk").info("disk is well again", free_bytes=free)
        return said if short else ""
