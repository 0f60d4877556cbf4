"""Precision, recall and delay on hand-made decisions."""

from __future__ import annotations

import math

import numpy as np

from detectors.evaluate import events, quality


def _flags(text: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([letter == "x" for letter in text])


def test_events_are_half_open_runs() -> None:
    """Runs at both ends of a series are seen."""
    assert [(0, 2), (3, 4), (5, 6)] == events(_flags("xx.x.x"))


def test_a_late_and_a_false_alarm() -> None:
    """One fault found two points late, one missed, one false alarm of two."""
    labels, raised = _flags(".xxxx....xx."), _flags("...xxx.x....")
    verdict = quality([(raised, labels)])
    assert (0.5, 0.5, 2.0, 2, 2) == verdict


def test_nothing_to_find_and_nothing_found() -> None:
    """A calm series without alarms is perfect, with no delay to speak of."""
    verdict = quality([(_flags("...."), _flags("...."))])
    assert (1.0, 1.0) == (verdict.precision, verdict.recall)
    assert math.isnan(verdict.delay_points)


def test_slack_forgives_an_alarm_just_after_its_fault() -> None:
    """A decision with patience may come when a short fault is over."""
    pair = (_flags("..x."), _flags(".x.."))
    assert 0.0 == quality([pair]).precision
    assert 1.0 == quality([pair], slack_points=1).precision
