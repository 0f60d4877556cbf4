"""Statistics of the window before each point, computed for all points at once."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats


def trailing(values: Floats, *, width: int, lag: int) -> Floats:
    """For each point i the `width` values that end `lag` points before it: rows i, shape (n, width), NaN before the start.

    lag >= 1 keeps the point itself out of its own baseline; a larger lag also keeps out the first points of an anomaly that lasts.
    """
    padded = np.concatenate((np.full(width + lag - 1, np.nan), values))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    return np.asarray(windows[: values.size], dtype=np.float64)


def row_median(rows: Floats, *, valid_min: int) -> Floats:
    """The median of each row without its NaNs; NaN for a row with fewer than `valid_min` (at least one) values.

    One sort for all rows (NaNs sort last) is an order of magnitude cheaper than a masked median for each.
    """
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        return np.full(rows.shape[0], np.nan)
    ordered = np.sort(rows, axis=1)
    valid = np.count_nonzero(~np.isnan(rows), axis=1)
    picked = np.arange(rows.shape[0])
    last = np.maximum(valid, 1)
    middle = (ordered[picked, (last - 1) // 2] + ordered[picked, last // 2]) / 2.0
    return np.where(valid >= max(valid_min, 1), middle, np.nan)


def trailing_sum(values: Floats, *, width: int, lag: int) -> Floats:
    """The sum of the `width` values that end `lag` points before each point; lag 0 includes the point itself. No NaN in values."""
    total = np.concatenate((np.zeros(1), np.cumsum(values)))
    ends = np.clip(np.arange(values.size) + 1 - lag, 0, values.size)
    starts = np.clip(ends - width, 0, values.size)
    return np.asarray(total[ends] - total[starts], dtype=np.float64)
