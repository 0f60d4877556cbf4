"""Series: the right points on the right grid, also where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.contract.records import AttemptError, Outcome
from controlplane.errors import BadRequest
from controlplane.store.client import Store
from controlplane.store.queries.measures import route_measured
from controlplane.store.queries.series import (
    Grid,
    attempt_success_ratio,
    call_success_ratio,
    calls_per_s,
    cost_usd_per_hour,
    first_token_p95_s,
)
from tests.controlplane.store.fakes import START_US, a_call, an_attempt
from tests.controlplane.store.fill import fill

START_S = START_US // 1_000_000
GRID = Grid(now_s=START_S + 17.5, step_s=5, window_s=15)


def at(second: float, *, latency_s: float = 0.0) -> int:
    """The start of what ends this long after START."""
    return START_US + round((second - latency_s) * 1e6)


def test_grid_holds_only_steps_that_are_over() -> None:
    """The last step ends at or before now, and steps lie on multiples of their width."""
    assert (START_S, START_S + 15, 3) == (GRID.start_s, GRID.end_s, GRID.points)
    assert START_S + 15 == Grid(now_s=START_S + 15.0, step_s=5, window_s=15).end_s


@pytest.mark.parametrize(
    "grid",
    [
        Grid(now_s=1e9, step_s=0, window_s=10),
        Grid(now_s=1e9, step_s=1, window_s=10**8),
        Grid(now_s=5, step_s=5, window_s=100),
    ],
)
def test_bad_grids_are_refused(store: Store, grid: Grid) -> None:
    """A grid without a width, with too many points, or before 1970 is a bad request."""
    with pytest.raises((BadRequest, ZeroDivisionError)):
        attempt_success_ratio(store, grid)


def test_attempt_success_ratio(store: Store) -> None:
    """Failures count in the step in which they ended; what says nothing about the deployment is left out."""
    fill(
        store,
        a_call(1, attempts=(an_attempt(at_us=at(1, latency_s=0.9)),)),
        a_call(2, attempts=(an_attempt(at_us=at(2, latency_s=0.9), error=AttemptError.STATUS_5XX),)),
        a_call(
            3,
            attempts=(an_attempt(at_us=at(12, latency_s=60), latency_us=60_000_000, error=AttemptError.IDLE_TIMEOUT),),
        ),
        a_call(4, attempts=(an_attempt(at_us=at(12, latency_s=0.9), error=AttemptError.CANCELLED),)),
        a_call(5, attempts=(an_attempt(at_us=at(12, latency_s=0.9), error=AttemptError.REJECTED),)),
        a_call(6, attempts=(an_attempt(at_us=at(15, latency_s=0.9)), an_attempt(at_us=at(-0.1, latency_s=0.9)))),
        a_call(7, attempts=(an_attempt("azure/gpt", at_us=at(14.9, latency_s=0.9)),)),
    )
    series = attempt_success_ratio(store, GRID)
    assert ["azure/gpt", "openai/gpt"] == list(series)
    one = series["openai/gpt"]
    np.testing.assert_array_equal(one.t, [START_S, START_S + 5, START_S + 10])
    np.testing.assert_array_equal(one.y, [0.5, np.nan, 0.0])
    np.testing.assert_array_equal(one.samples, [2, 0, 1])
    assert (np.int64, np.float64, np.int64) == (one.t.dtype, one.y.dtype, one.samples.dtype)
    np.testing.assert_array_equal(series["azure/gpt"].y, [np.nan, np.nan, 1.0])


def test_named_series_is_there_without_data(store: Store) -> None:
    """A deployment without attempts has a series of nothing; unnamed queries have no series at all."""
    series = attempt_success_ratio(store, GRID, deployment="nobody")
    assert ["nobody"] == list(series)
    assert np.isnan(series["nobody"].y).all()
    assert series["nobody"].samples.tolist() == [0, 0, 0]
    assert attempt_success_ratio(store, GRID) == {}


def test_first_token_p95(store: Store) -> None:
    """Seconds to the first content, of attempts that had any."""
    fill(
        store,
        *(
            a_call(n, attempts=(an_attempt(at_us=at(1, latency_s=0.9), first_token_us=n * 10_000),))
            for n in range(1, 101)
        ),
        a_call(200, attempts=(an_attempt(at_us=at(1, latency_s=0.9), error=AttemptError.FIRST_BYTE_TIMEOUT),)),
    )
    series = first_token_p95_s(store, GRID, deployment="openai/gpt")["openai/gpt"]
    assert series.y[0] == pytest.approx(0.95, abs=0.02)
    assert np.isnan(series.y[1:]).all()
    assert series.samples.tolist() == [100, 0, 0]


def test_call_success_ratio_leaves_out_the_clients_own_doing(store: Store) -> None:
    """A denied or abandoned call makes an alias neither better nor worse; an exhausted one makes it worse."""
    outcomes = [Outcome.OK, Outcome.OK, Outcome.EXHAUSTED, Outcome.TIMED_OUT, Outcome.DENIED, Outcome.CLIENT_CLOSED]
    fill(store, *(a_call(n, at_us=at(6, latency_s=1), outcome=outcome) for n, outcome in enumerate(outcomes)))
    series = call_success_ratio(store, GRID)["gpt"]
    np.testing.assert_array_equal(series.y, [np.nan, 0.5, np.nan])
    assert series.samples.tolist() == [0, 4, 0]


def test_what_nobody_waits_for_is_no_call_of_a_client(store: Store) -> None:
    """Copies for a shadow or a sick deployment make an alias neither worse nor busier, whatever becomes of them."""
    copies = (
        a_call(n, at_us=at(6, latency_s=1), outcome=Outcome.EXHAUSTED, tenant="", agent="hephaestus")
        for n in range(1, 9)
    )
    fill(store, a_call(0, at_us=at(6, latency_s=1)), *copies)
    series = call_success_ratio(store, GRID)["gpt"]
    np.testing.assert_array_equal(series.y, [np.nan, 1.0, np.nan])
    assert [0.0, 0.2, 0.0] == calls_per_s(store, GRID)["gpt"].y.tolist()
    measured = route_measured(store, "gpt", from_us=GRID.start_s * 1_000_000, to_us=GRID.end_s * 1_000_000)
    assert (1, 1) == (measured.calls, measured.good)


def test_rates_are_zero_where_nothing_came(store: Store) -> None:
    """Calls per second and USD per hour are known to be zero in an empty step."""
    fill(store, *(a_call(n, at_us=at(6, latency_s=1), cost_nanousd=250_000_000) for n in range(10)))
    assert calls_per_s(store, GRID)["gpt"].y.tolist() == [0.0, 2.0, 0.0]
    assert cost_usd_per_hour(store, GRID)["acme"].y.tolist() == [0.0, 1800.0, 0.0]
    assert cost_usd_per_hour(store, GRID, tenant="other")["other"].y.tolist() == [0.0, 0.0, 0.0]


def test_names_are_values_not_sql(store: Store) -> None:
    """A deployment may have any name."""
    evil = "x' OR 1=1 --"
    fill(store, a_call(1, attempts=(an_attempt(evil, at_us=at(1, latency_s=0.9)),)), a_call(2, at_us=at(1)))
    assert [evil] == list(attempt_success_ratio(store, GRID, deployment=evil))
    assert attempt_success_ratio(store, GRID, deployment=evil)[evil].samples.tolist() == [1, 0, 0]
