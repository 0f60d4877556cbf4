"""Writes docs/reference/ from the code: `python docs/generate.py`; a test compares the pages with what this would write."""

from __future__ import annotations

import tempfile
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import msgspec
from prometheus_client import CollectorRegistry, Metric

from benchmarks import summary
from controlplane.__main__ import main as command_line
from controlplane.app.measures import all_metrics
from controlplane.catalog import file
from controlplane.contract import routing, snapshot
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError, CacheState, CostState, Outcome
from controlplane.settings import described
from controlplane.store import schema
from proxy.dialects.operations import OPERATIONS
from proxy.refusals import TABLE
from proxy.settings import ProxySecrets, Secret
from proxy.worker import Worker
from tests.clients import shows

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py; change the code, then run `make docs`. -->\n"

REFUSALS = {
    "denied": "The key is missing, unknown, expired or revoked. Check `Authorization: Bearer sk-heph-...`.",
    "rate_limited": "The tenant's requests per minute or concurrent calls are used up; `retry-after` says when to come again.",
    "over_budget": "A budget or token limit would be overrun by this call's worst case; the message names it and says when it resets.",
    "too_large": "The body or head is larger than the proxy accepts.",
    "malformed": "The body is not what the operation needs; the message says which field.",
    "forbidden": "The tenant or key may not use this model, or asks for more than its ceiling.",
    "no_route": "No alias of this name is configured for the key; `GET /v1/models` lists those that are.",
    "not_found": "No such path.",
    "method_not_allowed": "The path exists, the method does not.",
    "not_cached": "The client asked for `only-if-cached`, and the answer is not stored.",
    "exhausted": "Every deployment that could be tried failed.",
    "timed_out": "The deadline passed before an answer came.",
    "unavailable": "No healthy deployment: every breaker is open. `retry-after` says when the next probe is due.",
    "overloaded": "Every place at the model's deployments is taken and the queue is full, or no place became free in time; the lowest priority is refused first.",
    "not_ready": "The proxy has no snapshot yet: it never reached the control plane.",
    "misconfigured": "Our own configuration is at fault, for example a credential that cannot be read.",
    "unpriced": "The deployment has no price and the tenant's policy refuses such calls.",
    "broken_stream": "Inside a stream: the upstream failed after the first content.",
    "internal": "A defect of the proxy; the call id is in its log.",
}

OUTCOMES = {
    Outcome.OK: "answered", Outcome.UPSTREAM_REFUSED: "the upstream's final 4xx, passed through",
    Outcome.CLIENT_CLOSED: "the client left before the end", Outcome.BROKEN_STREAM: "failed after the first content byte",
}  # fmt: skip


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Every setting of the `server:` section."""
    rows = [(f"`{one.path}`", one.type, f"`{one.default}`", one.sentence) for one in described()]
    return (
        f"# Settings\n\n{NOTE}\nThe `server:` section of the configuration file. A change needs a restart; everything else in the file is hot-reloaded.\n"
        "The unit is the last word of a name: `_s` seconds, `_bytes` bytes, `_us` microseconds.\n\n"
        + _table(("setting", "type", "default", "meaning"), rows)
    )


def refusals_page() -> str:
    """The closed table of our own answers, and how calls end."""
    rows = [
        (
            f"`{one.code}`",
            str(one.status),
            f"`{one.outcome}`",
            one.source,
            "yes" if one.should_retry else "no",
            REFUSALS[one.code],
        )
        for one in TABLE
    ]
    codes = {one.outcome: one.code for one in TABLE}
    outcomes = [(f"`{outcome}`", OUTCOMES.get(outcome) or f"refused with `{codes[outcome]}`") for outcome in Outcome]
    return (
        f"# Refusals and outcomes\n\n{NOTE}\nWhat the proxy answers when it does not pass an upstream's answer on. The body has the shape of the client's protocol; "
        "`code` is stable.\n`x-heph-error-source` says whose fault it is, `x-should-retry` whether an SDK should try again.\n\n"
        + _table(("code", "status", "outcome", "source", "retry", "what it means"), rows)
        + '\n## Shapes\n\nOpenAI\'s clients get `{"error": {"message", "type", "param", "code"}}`; inside a stream that has begun, the same behind `data: `.\n'
        'Anthropic\'s clients get `{"type": "error", "error": {"type", "message"}, "request_id"}` with Anthropic\'s own names of types (inside a stream: `event: error`), '
        "`request-id`, and our code in `x-heph-error-code`.\nWho is whose client is decided by the path, and where both ask for the same path (`/v1/models`, `/passthrough/`, "
        "one that is not there) by the header `anthropic-version`.\nAn upstream's own error that is passed on keeps its status and its body to the byte.\n"
        "\n## Ids\n\nEvery answer but those of `/`, `/livez`, `/readyz` and `/metrics` has an id in `x-heph-call-id`; that of a call is the key of its row.\nA request that becomes no call reaches no upstream and leaves no row: "
        "a path that is not there, a wrong method, a worker without a snapshot, what is no HTTP or does not arrive.\nIts id only tells answers apart; such requests are counted in "
        "`heph_proxy_refused_requests_total` by `code`, those that could not even be read in `heph_proxy_bound_hits_total` (`not_http`, `header_bytes_max`, `body_timeout_s`).\n"
        + "\n## Outcomes\n\nHow a call ended, as `calls.outcome` says it.\n\n"
        + _table(("outcome", "meaning"), outcomes)
    )


def metrics_page() -> str:
    """Every Prometheus metric of both planes."""
    text = f"# Metrics\n\n{NOTE}\nPrometheus metrics in base units. Each proxy worker serves its own at `/metrics` on the proxy's port and says so in the label `worker`.\n"
    for title, families in (
        ("Proxy", _proxy_metrics()),
        ("Control plane", list(all_metrics(CollectorRegistry()).collect())),
    ):
        rows = sorted(
            (f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation)
            for family in families
        )
        text += f"\n## {title}\n\n" + _table(("metric", "type", "meaning"), rows)
    return text


def _proxy_metrics() -> list[Metric]:
    """What one worker shows, what it watches of its spool, cache and shipper included."""
    with tempfile.TemporaryDirectory() as folder:
        secrets = ProxySecrets(key_pepper=Secret("00" * 32), internal_token=Secret("none"))
        worker = Worker(ProxySettings(data_dir=folder), secrets)
        try:
            return list(worker.metrics.collect())
        finally:
            worker.spool.close()


def data_model_page() -> str:
    """Tables, columns and the closed sets in them."""
    text = (
        f"# Data model\n\n{NOTE}\nDatabase `hephaestus`. Facts are immutable rows, written once; times are UTC, money is exact.\n\n"
        "## Money\n\nA cost is an integer number of nano-USD. Token kinds are disjoint: no token is counted in two of them, and they sum to the provider's total.\n"
        "A price is an integer number of nano-USD per million tokens of one kind. The cost of an attempt is the sum over kinds of tokens times price, divided by a million and rounded half up, once.\n"
        "In the tables it is `Decimal(18, 9)` USD, which holds it exactly. `cost_state` says how well it is known:\n\n"
    )
    text += _table(("cost_state", "meaning"), [
        (f"`{CostState.FINAL}`", "from the usage that the upstream reported"),
        (f"`{CostState.ESTIMATED}`", "the call ended before its usage was known"),
        (f"`{CostState.UNPRICED}`", "the price book has no price; counted apart, never as zero"),
    ])  # fmt: skip
    text += "\n`cache` is one of " + ", ".join(f"`{one}`" for one in CacheState) + ".\n"
    text += "`attempts.error` is empty or one of " + ", ".join(f"`{one}`" for one in AttemptError if one) + ".\n"
    for table in schema.TABLES:
        text += f"\n## {table.name}\n\n{table.doc}\n\n" + _table(
            ("column", "type", "meaning"), [(f"`{one.name}`", f"`{one.type}`", one.doc) for one in table.columns]
        )
    return text


def cli_page() -> str:
    """Every command with its options."""
    text = f"# Command line\n\n{NOTE}\n`hephaestus`, also `python -m controlplane`. Exit status 0: done; 1: the answer is no, or it could not be done; 2: used wrongly.\n"
    return text + "".join(_command(command_line, "hephaestus"))


def _command(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in sorted(command.list_commands(context)):
            member = command.get_command(context, name)
            if member is not None:
                yield from _command(member, f"{path} {name}")
        return
    usage = " ".join(piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]")
    yield f"\n## `{path}{' ' + usage if usage else ''}`\n\n{(command.help or '').strip()}\n"
    options = [one for one in command.params if isinstance(one, click.Option)]
    if options:
        yield "\n" + _table(
            ("option", "meaning"),
            [(" ".join(f"`{name}`" for name in one.opts), (one.help or "").strip()) for one in options],
        )


def configuration_page() -> str:
    """The sections of the configuration file that are hot-reloaded."""
    text = (
        f"# Configuration file\n\n{NOTE}\nOne YAML file; unknown keys are errors with file, line and the nearest valid key. Secrets are references: `env:NAME` or `file:/path`.\n"
        "`server:` is described in [Settings](settings.md). Everything below is hot-reloaded: checked as a whole, applied at once or refused while the last good one stays.\n"
    )
    sections = (
        ("upstreams[]", file.UpstreamEntry), ("models[]", file.ModelEntry), ("models[].deployments[]", file.DeploymentEntry), ("models[].batch", snapshot.BatchPolicy),
        ("prices.{model}", file.PriceEntry), ("prices.{model}.long[]", file.LongPriceEntry),
        ("prices.{model}.service.{class}", file.ServicePriceEntry), ("prices.{model}.changes[]", file.PriceChangeEntry), ("tenants[]", file.TenantEntry), ("tenants[].limits", file.Limits),
        ("tenants[].budgets[]", file.BudgetEntry), ("tenants[].quotas[]", file.QuotaEntry), ("tenants[].quotas[].match", snapshot.QuotaMatch),
        ("tenants[].fair_share", file.FairShare), ("cache", snapshot.CachePolicy), ("payloads", snapshot.PayloadPolicy),
        ("models[].deployments[].concurrency", routing.Concurrency), ("models[].retries", routing.Retries),
        ("models[].retries.{class}", routing.RetryRule), ("models[].fallbacks", routing.Fallbacks), ("models[].hedge", file.HedgeEntry),
        ("models[].canary", routing.Canary), ("models[].affinity", routing.Affinity), ("models[].shadow", routing.Shadow),
        ("retries", routing.Retries), ("breaker", snapshot.BreakerPolicy), ("breaker.weights", routing.BreakerWeights), ("alerts[]", file.AlertEntry),
    )  # fmt: skip
    for title, struct in sections:
        rows = []
        for field in msgspec.structs.fields(struct):
            required = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
            default = "required" if required else _default(field)
            rows.append((f"`{field.encode_name}`", default, _meaning(field, title)))
        text += f"\n## `{title}`\n\n{(struct.__doc__ or '').splitlines()[0]}\n\n" + _table(
            ("key", "default", "meaning"), rows
        )
    return text


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = {} if field.default is msgspec.NODEFAULT else field.default
    return "see below" if isinstance(value, msgspec.Struct) else f"`{msgspec.json.encode(value).decode()}`"


def _meaning(field: msgspec.structs.FieldInfo, section: str) -> str:
    """The field's own sentence: the last description in its type, that of the struct in it, or one from CONTRACT."""
    if f"{section}.{field.name}" in CONTRACT:
        return CONTRACT[f"{section}.{field.name}"]
    metas = [one for one in getattr(field.type, "__metadata__", ()) if isinstance(one, msgspec.Meta)]
    said = [one.description for one in metas if one.description] or [one.title for one in metas if one.title]
    if said:
        return str(said[-1])
    for kind in (field.type, *typing.get_args(field.type)):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return (kind.__doc__ or "").splitlines()[0]
    return ""


CONTRACT = {
    "cache.enabled": "Whether answers are kept and given again.",
    "cache.ttl_s": "How long an answer is kept.",
    "payloads.store": "Whether request and response bodies are kept.",
    "payloads.retention_days": "For how long.",
    "breaker.window_s": "Length of the sliding window over which calls are counted.",
    "breaker.requests_min": "Fewer calls than this in the window never open a breaker.",
    "breaker.error_ratio": "Share of failed calls that opens it.",
    "breaker.slow_s": "A call that takes longer than this is slow.",
    "breaker.slow_ratio": "Share of slow calls that opens it.",
    "breaker.open_s": "How long it stays open before probes are let through.",
    "breaker.probes": "Probes that must succeed before it closes.",
    "breaker.failures_in_row": "It opens after so many failures without a success between them, each by its weight.",
    "breaker.all_open": "What happens to a call whose model has only open breakers: `refuse` or `try`.",
    "breaker.probe_idle": "Whether a sick deployment that no call would probe gets copies of calls that another has answered.",
    "breaker.weights.connect": "The upstream could not be reached.",
    "breaker.weights.status_429": "It said that there were too many calls.",
    "breaker.weights.status_5xx": "It failed.",
    "breaker.weights.auth": "It refused our credential.",
    "breaker.weights.quota": "Our credit there is used up.",
    "breaker.weights.first_byte_timeout": "It was silent for too long; such a failure costs the caller most.",
    "breaker.weights.idle_timeout": "It fell silent within its answer.",
    "breaker.weights.truncated": "Its answer ended too early.",
    "breaker.weights.malformed": "Its answer made no sense.",
}
"""Sentences for what the contract of the two planes defines and the configuration file may set."""


ENDPOINTS = {
    "chat": "Whole or streamed; tools, images, sound, structured output. Usage of a stream is switched on for the record and hidden from a client that did not ask.",
    "embeddings": "Stored and asked for input by input.",
    "messages": "Whole or streamed, every kind of event; `anthropic-*` headers and unknown fields go on untouched. A `thread` and a `container` are their tenant's only.",
    "count_tokens": "Costs nothing.",
    "completions": "Whole or streamed; several prompts, `n` and `best_of` are reserved for.",
    "responses": "Whole or streamed, every kind of event; tools, reasoning, images, structured output, `previous_response_id`, `conversation`, `background`. Stored answers only with `store: false`.",
    "responses_compact": "Metered like a response.",
    "responses_input_tokens": "Costs nothing.",
    "responses_get": "Its tenant's only; also as a stream, with `starting_after`. Books a background response that is finished, once.",
    "responses_delete": "Its tenant's only.",
    "responses_cancel": "Its tenant's only.",
    "responses_input_items": "Its tenant's only; query parameters go on.",
    "conversations_create": "At the upstream of the model that `x-heph-model` names, else of the first that the key may use.",
    "conversations_get": "Its tenant's only.",
    "conversations_update": "Its tenant's only.",
    "conversations_delete": "Its tenant's only.",
    "conversations_items_create": "Its tenant's only, and so are the items that it refers to.",
    "conversations_items_list": "Its tenant's only.",
    "conversations_items_get": "Its tenant's only.",
    "conversations_items_delete": "Its tenant's only.",
    "moderations": "Without `model` it is `omni-moderation-latest`. Reports no usage: an estimate by its size.",
    "audio_speech": "Sound, sent on as it comes, or events with `stream_format: sse`. Without tokens in the answer, by the price's `character`, else unpriced.",
    "audio_transcriptions": "A form; text, JSON, subtitles or events. Without tokens in the answer, by the price's `second`, else unpriced.",
    "audio_translations": "As transcriptions.",
    "images_generations": "JSON or events. Without `model` it is `dall-e-2`. Without tokens in the answer, by the price's `picture`, else unpriced.",
    "images_edits": "A form; as generations.",
    "images_variations": "A form; as generations.",
    "files_create": "A form with `purpose: batch` and a JSON Lines file. Every line is checked as a call of its own would be, and written with the upstream's names of the models; it may ask for chat completions, responses, embeddings or completions.",
    "files_list": "Its tenant's only, at most 100 at once.",
    "files_get": "Its tenant's only.",
    "files_delete": "Its tenant's only. The results of a batch only when they are booked.",
    "files_content": "Its tenant's only; sent on as it comes.",
    "batches_create": "Holds what the batch may cost until it is booked.",
    "batches_list": "Its tenant's only, at most 100 at once.",
    "batches_get": "Its tenant's only. One that has ended is booked within seconds, once, in records of the operation `batch_usage`.",
    "batches_cancel": "Its tenant's only; what was done is booked.",
    "messages_batches_create": "Every request is checked as a call of its own would be. Holds what the batch may cost until it is booked.",
    "messages_batches_list": "Its tenant's only, with `limit` and `after_id`, at most 100 at once.",
    "messages_batches_get": "Its tenant's only; `results_url` leads here. Booked as OpenAI's.",
    "messages_batches_delete": "Its tenant's only, and only when it is booked.",
    "messages_batches_results": "Its tenant's only; sent on as it comes.",
    "messages_batches_cancel": "Its tenant's only; what was done is booked.",
    "models": "The models that the key may use, from the configuration; no upstream is asked. For Anthropic's clients in pages, with `limit`, `after_id` and `before_id`.",
    "passthrough": "`/passthrough/{upstream}/...`: any path of an upstream, for tenants that have a grant.",
}
"""What works at each endpoint, in a sentence."""

CLIENTS = {"openai": "OpenAI", "responses": "OpenAI", "anthropic": "Anthropic"}


def endpoints_page() -> str:
    """Every operation that a client can ask for."""
    rows = []
    for name, row in OPERATIONS.items():
        path = row.paths[0].replace("{*}", "{id}").replace("{}", "{id}") if row.paths else "/passthrough/{upstream}/..."
        client = "any" if row.protocol is None else CLIENTS[row.protocol]
        stored = "yes" if row.cached else "no"
        asked = f"`{row.method.decode() or 'any'} {path}`"
        rows.append((asked, f"`{name}`", client, stored, ENDPOINTS.get(name, "")))
    return (
        f"# Endpoints\n\n{NOTE}\nWhat clients can ask the proxy for. Each path is served with and without `/v1`.\n"
        "`operation` is its name in records, metrics and `calls.operation`; `stored` says whether an answer may be kept and given again.\n"
        "Every one needs a key, counts against its tenant's limits, and leaves exactly one record.\n\n"
        + _table(("request", "operation", "client", "stored", "what works"), rows)
        + "\nNot served: WebSockets (`responses.connect`, realtime), files that are no batches, vector stores, containers and assistants; "
        "an operator can grant their paths as passthrough.\n"
    )


PAGES = {
    "endpoints.md": endpoints_page,
    "settings.md": settings_page,
    "configuration.md": configuration_page,
    "refusals.md": refusals_page,
    "metrics.md": metrics_page,
    "data-model.md": data_model_page,
    "cli.md": cli_page,
    "clients.md": shows.page,
    "benchmarks.md": summary.page,
}


def main() -> None:
    """Writes all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())


if __name__ == "__main__":
    main()
