"""What the results of a batch add up to: which model, at which price, and how well that is known."""

from __future__ import annotations

import json

from msgspec import Raw

from controlplane.contract.pricing import Item, LongPrice, Price, ServicePrice, Tokens
from controlplane.contract.records import CostState
from proxy.batch_sums import Bill, cost_of
from proxy.dialects.filed import Answered, decode_filed
from proxy.transports.batch_plan import batch_prices
from proxy.transports.owners import Batched, BatchModel, Promised

HALF = Price(
    1_000_000, 2_000_000, version="p/batch", long=(LongPrice(100, Price(3_000_000, 4_000_000, version="p/l")),)
)
PRICE = Price(2_000_000, 4_000_000, version="p", service=(ServicePrice("batch", HALF),), search=7)


def batch(*models: BatchModel, of_anthropic: bool = False) -> Promised:
    """A batch of these models."""
    return Promised(Batched("chat", 1, 0, models), "u0", "0", 0, of_anthropic=of_anthropic)


def model(name: str, price: Price | None = PRICE) -> BatchModel:
    """A model under its own name."""
    return BatchModel(name, f"u0/{name}", name, price)


def line(name: str, prompt: int = 10, completion: int = 0, **more: object) -> bytes:
    """An answer of a model."""
    body = {"model": name, "usage": {"prompt_tokens": prompt, "completion_tokens": completion}} | more
    return json.dumps({"response": {"status_code": 200, "body": body}}).encode() + b"\n"


def test_each_line_goes_to_the_model_whose_name_it_begins_with() -> None:
    """The longest such name; one that fits none goes to the first, and makes it an estimate."""
    bill = Bill(batch(model("gpt"), model("gpt-mini")), 1000)
    bill.feed(line("gpt-2024") + line("gpt-mini-2024") + line("gpt-mini-2025"))
    bill.finish()
    assert {"gpt": (1, 10, CostState.FINAL), "gpt-mini": (2, 20, CostState.FINAL)} == {
        name: (used.requests, used.nanousd, used.state) for name, used in bill.used.items()
    }
    bill.feed(line("other"))
    assert (2, CostState.ESTIMATED) == (bill.used["gpt"].requests, bill.used["gpt"].state)


def test_a_long_prompt_counts_line_by_line() -> None:
    """Not by the sum of all prompts."""
    bill = Bill(batch(model("m")), 1000)
    bill.feed(line("m", 90) + line("m", 90) + line("m", 110))
    bill.finish()
    assert (90 + 90 + 3 * 110, Tokens(input=290)) == (bill.used["m"].nanousd, bill.used["m"].tokens)


def test_what_cannot_be_read_makes_an_estimate() -> None:
    """A line that is none, that is too long, or that says nothing of its usage."""
    for text in (b"{\n", line("m", filler="x" * 2000), b'{"response":{"status_code":200,"body":{"model":"m"}}}\n'):
        bill = Bill(batch(model("m")), 1000)
        bill.feed(line("m") + text)
        bill.finish()
        assert (10, CostState.ESTIMATED, 1) == (bill.used["m"].nanousd, bill.used["m"].state, bill.unknown)


def test_searches_whose_count_cannot_be_read_are_an_estimate() -> None:
    """One is booked for such a line, and the state of its model says that it is a guess."""
    odd = {"prompt_tokens": 10, "completion_tokens": 0, "server_tool_use": {"web_search_requests": "3"}}
    bill = Bill(batch(model("m")), 1000)
    bill.feed(line("m") + line("m", usage=odd))
    bill.finish()
    assert (10 + 10 + 7, CostState.ESTIMATED) == (bill.used["m"].nanousd, bill.used["m"].state)
    assert {"search": Item("search", 1_000_000, 7)} == bill.used["m"].items


def test_a_sum_stands_for_results_that_are_gone() -> None:
    """Where the batch has one."""
    said = {"id": "b", "model": "m", "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}
    bill = Bill(batch(model("m")), 1000)
    assert bill.add_summary(decode_filed(json.dumps(said).encode()))
    assert (5 + 4, CostState.ESTIMATED) == (bill.used["m"].nanousd, bill.used["m"].state)
    lacking = Bill(batch(model("m")), 1000)
    assert not lacking.add_summary(decode_filed(b'{"id":"b"}'))
    assert (0, CostState.ESTIMATED) == (lacking.used["m"].nanousd, lacking.used["m"].state)


def test_what_is_dearer_in_a_batch_is_dearer() -> None:
    """Anthropic's `us` has its own price in batches, and searches are billed one by one."""
    us = ServicePrice("batch+us", Price(1_100_000, 2_200_000, version="p/batch+us"))
    usage = '{"input_tokens":10,"output_tokens":0,"service_tier":"batch","inference_geo":"us","server_tool_use":{"web_search_requests":2}}'
    said = Answered("m", Tokens(input=10), Raw(f'{{"model":"m","usage":{usage}}}'.encode()))
    both = Price(2_000_000, 4_000_000, service=(*PRICE.service, us), search=7)
    items = (Item("search", 2_000_000, 14),)
    assert (11 + 14, CostState.FINAL, "p/batch+us", items) == cost_of(said, model("m", both))
    assert (10 + 14, CostState.FINAL, "p/batch", items) == cost_of(said, model("m"))


def test_a_model_that_always_searches_is_billed_for_it() -> None:
    """Its answers do not say so."""
    said = Answered("m-search-preview", Tokens(input=10), Raw(b'{"model":"m-search-preview"}'))
    items = (Item("search", 1_000_000, 7),)
    assert (10 + 7, CostState.FINAL, "p/batch", items) == cost_of(said, model("m-search-preview"))


def test_the_worst_case_knows_every_price_that_a_batch_may_have() -> None:
    """Those of batches, alone and with other classes; where none is stated, the standard one."""
    us = Price(5, 5)
    assert [HALF] == batch_prices(PRICE)
    assert [HALF, us] == batch_prices(Price(1, 1, service=(*PRICE.service, ServicePrice("batch+us", us))))
    plain = Price(1, 1, service=(ServicePrice("flex", us),))
    assert [plain] == batch_prices(plain)
