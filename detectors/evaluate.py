"""How good decisions are against labels: by event for recall and delay, by alarm for precision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detectors.base import Bools, Ints


class Quality(NamedTuple):
    """The verdict over one or many series.

    precision: alarms that touch a fault (or follow it within the slack) over all alarms; 1.0 without alarms.
    recall: faults that met an alarm while they lasted, over all faults; 1.0 without faults.
    delay_points: the median number of points from a fault's first to the alarm; NaN if none was found.
    """

    precision: float
    recall: float
    delay_points: float
    faults: int
    alarms: int


def quality(pairs: list[tuple[Bools, Bools]], *, slack_points: int = 0) -> Quality:
    """The verdict over pairs of (raised, labels), each of one shape (n,).

    slack_points: an alarm that begins this many points after a fault ended still counts as caused by it, since a decision with patience lags.
    """
    found, faults, good, alarms = 0, 0, 0, 0
    delays: list[int] = []
    for raised, labels in pairs:
        spans = events(labels)
        for start, end in spans:
            faults += 1
            hits = np.flatnonzero(raised[start:end])
            if hits.size:
                found += 1
                delays.append(int(hits[0]))
        for start, end in events(raised):
            alarms += 1
            good += any(start < fault_end + slack_points and end > fault_start for fault_start, fault_end in spans)
    return Quality(
        precision=good / alarms if alarms else 1.0,
        recall=found / faults if faults else 1.0,
        delay_points=float(np.median(delays)) if delays else float("nan"),
        faults=faults,
        alarms=alarms,
    )


def events(flags: Bools) -> list[tuple[int, int]]:
    """The runs of True as half-open index ranges."""
    edges = np.diff(np.concatenate(([False], flags, [False])).astype(np.int8))
    starts: Ints = np.flatnonzero(edges == 1)
    ends: Ints = np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
