"""Costs as upstreams report them: read where they can be, and compared."""

from __future__ import annotations

import pytest

from proxy.dialects.reported_cost import out_of_bounds, reported_nanousd


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (140_000, b'{"usage":{"prompt_tokens":9,"cost":0.00014,"cost_details":{"upstream_inference_cost":9}}}'),
        (15_000, b'{"usage": {"cost" : 1.5e-05 }}'),
        (0, b'{"usage":{"cost":0}}'),
        (2_000_000_000, b'data: {"usage":{"cost":1}}\n\ndata: {"usage":{"cost":2}}\n\n'),
        (None, b'{"cost":5,"usage":{"prompt_tokens":9}}'),
        (None, b'{"content":"\\"usage\\":{\\"cost\\":5}"}'),
        (140_000, b'{"usage":{"cost":0.00014,"currency":"usd"}}'),
        (None, b'{"usage":{"cost":0.00014,"currency":"EUR"}}'),
        (None, b'{"usage":{"currency":"CNY","cost":0.00014}}'),
        (None, b'{"usage":{"cost":null}}'),
        (None, b'{"usage":{"cost":"5"}}'),
        (None, b'{"usage":{"cost":-1}}'),
        (None, b'{"usage":{"cost":1e99}}'),
        (None, b'{"usage":{"cost":1.2.3}}'),
        (None, b"<html>"),
    ],
)
def test_the_figure_of_the_last_usage(expected: int | None, body: bytes) -> None:
    """In USD there, in nano-USD here; what a model says in its text is none, nor is what cannot be."""
    assert expected == reported_nanousd(body)


@pytest.mark.parametrize(
    ("expected", "reported", "own"),
    [
        (False, 15_000, 15_000),
        (False, 30_000, 15_000),
        (False, 7_500, 15_000),
        (True, 31_000, 15_000),
        (True, 7_000, 15_000),
        (True, 15_000_000_000, 15_000),
        (True, 0, 15_000),
        (False, 900, 0),
    ],
)
def test_bounds(expected: bool, reported: int, own: int) -> None:
    """A factor of two either way; fractions of a cent's thousandth are no difference."""
    assert expected == out_of_bounds(reported, own, ratio_max=2.0)
