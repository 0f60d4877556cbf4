"""Cost reports over HTTP."""

from __future__ import annotations

import csv
import io

import httpx
import pytest

from controlplane.api.costs import exact_usd


async def test_costs_come_as_json_and_csv(operator: httpx.AsyncClient) -> None:
    """Both carry the same money, exact to the nano-USD; a formula in a name is made text."""
    report = (await operator.get("/api/v1/costs?by=agent,model")).json()
    assert 1_500_000_007 == report["total_nanousd"] == sum(row["nanousd"] for row in report["rows"])
    answer = await operator.get("/api/v1/costs?by=agent,model&format=csv")
    assert "text/csv; charset=utf-8" == answer.headers["content-type"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert ("'=1+1", "1.500000000") == (rows[0]["agent"], rows[0]["cost_usd"])
    assert "0.000000007" == rows[1]["cost_usd"]


@pytest.mark.parametrize(
    ("nanousd", "expected"),
    [(0, "0.000000000"), (1, "0.000000001"), (-1, "-0.000000001"), (10**18, "1000000000.000000000")],
)
def test_exact_money_has_nine_decimals(nanousd: int, expected: str) -> None:
    """Nothing is rounded."""
    assert expected == exact_usd(nanousd)
