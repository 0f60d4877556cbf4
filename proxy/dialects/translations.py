"""Who translates: by the client's operation and the upstream's dialect, where the upstream does not speak the operation itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.dialects.dialect import Translation

TRANSLATIONS: Mapping[tuple[str, str], Callable[[], Translation]] = {}
