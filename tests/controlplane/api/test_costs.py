"""Cost reports over HTTP."""

from __future__ import annotations

import csv
import io

import httpx


async def test_costs_come_as_json_and_csv(operator: httpx.AsyncClient) -> None:
    """Both carry the same money, exact to the nano-USD; a formula in a name is made text."""
    report = (await operator.get("/api/v1/costs?by=agent,model")).json()
    assert 1_500_000_007 == report["total"]["cost_nanousd"] == sum(row["cost_nanousd"] for row in report["rows"])
    answer = await operator.get("/api/v1/costs?by=agent,model&format=csv")
    assert "text/csv; charset=utf-8" == answer.headers["content-type"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert ("'=1+1", "1.500000000") == (rows[0]["agent"], rows[0]["cost_usd"])
    assert "0.000000007" == rows[1]["cost_usd"]


async def test_savings_and_reconciliation_are_served(operator: httpx.AsyncClient) -> None:
    """What was saved, and whether rows and ledgers agree, are answers of their own."""
    saved = (await operator.get("/api/v1/savings?tenant=acme")).json()
    assert saved["saved_nanousd"] == 5
    assert [line["source"] for line in saved["lines"]] == ["hit"]
    books = (await operator.get("/api/v1/reconciliation")).json()
    assert books["difference_nanousd"] == books["rows_nanousd"] - books["ledger_nanousd"]
