"""The typed values of a playbook: durations, shares, rates and thresholds, as people write them."""

from __future__ import annotations

import re

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_RATE = re.compile(r"(\d+)/(m|h|d)")
_BASELINE = re.compile(r"baseline(?:\s*([*+-])\s*(\d+(?:\.\d+)?))?")


class Duration(float):
    """A length of time in seconds, written `90s`, `5m`, `1.5h`, `250ms`, `2d`."""

    __slots__ = ()


class Share(float):
    """A part of a whole, 0..1, written `60%`."""

    __slots__ = ()


class Rate:
    """So many per so long, written `6/h`. A plain class, so that msgspec asks `parse_value` to read it."""

    __slots__ = ("count", "window_s")

    def __init__(self, count: int, window_s: float) -> None:
        self.count, self.window_s = count, window_s


class Threshold:
    """What a measurement is compared with: a number, or the baseline times `factor` plus `offset`.

    The baseline is the same measurement taken when the run was planned, just before it acted. A plain class, as `Rate` is.
    """

    __slots__ = ("factor", "number", "of_baseline", "offset")

    def __init__(
        self, *, number: float = 0.0, of_baseline: bool = False, factor: float = 1.0, offset: float = 0.0
    ) -> None:
        self.number, self.of_baseline, self.factor, self.offset = number, of_baseline, factor, offset

    def value(self, baseline: float | None) -> float | None:
        """The number to compare with; None when a baseline is needed and there is none, or it was 0 and only multiplied: any multiple of nothing is nothing."""
        if not self.of_baseline:
            return self.number
        if baseline is None or (baseline == 0 and self.offset == 0):
            return None
        return baseline * self.factor + self.offset


def parse_value(kind: type, written: object) -> object:
    """Read one value of a playbook; msgspec's decoding hook.

    Raises ValueError, which says what the value should look like; msgspec adds the place.
    """
    if kind is Duration:
        return _duration(written)
    if kind is Share:
        return _share(written)
    if kind is Threshold:
        return _threshold(written)
    if kind is Rate:
        return _rate(written)
    raise TypeError(f"no way to read a {kind.__name__}")


def _duration(written: object) -> Duration:
    match = _DURATION.fullmatch(written) if isinstance(written, str) else None
    if match is None:
        raise ValueError(f"{written!r} is no duration; write a number with a unit, such as 30s, 5m or 2h")
    return Duration(float(match[1]) * _UNITS_S[match[2]])


def _share(written: object) -> Share:
    match = _PERCENT.fullmatch(written) if isinstance(written, str) else None
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{written!r} is no share; write it in percent, from 0% to 100%")
    return Share(float(match[1]) / 100)


def _rate(written: object) -> Rate:
    match = _RATE.fullmatch(written) if isinstance(written, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{written!r} is no rate; write a count per m, h or d, such as 6/h")
    return Rate(int(match[1]), _UNITS_S[match[2]])


def _threshold(written: object) -> Threshold:
    if isinstance(written, (int, float)) and not isinstance(written, bool):
        return Threshold(number=float(written))
    if isinstance(written, str):
        if _PERCENT.fullmatch(written):
            return Threshold(number=float(_share(written)))
        if _DURATION.fullmatch(written):
            return Threshold(number=float(_duration(written)))
        if match := _BASELINE.fullmatch(written):
            sign, amount = match[1], float(match[2] or 0)
            if sign == "*":
                return Threshold(of_baseline=True, factor=amount)
            return Threshold(of_baseline=True, offset=-amount if sign == "-" else amount)
    raise ValueError(f"{written!r} is no threshold; write a number, 98%, 5s, or `baseline * 1.5`")
