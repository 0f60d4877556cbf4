"""Whether a tenant may have the requests of a batch made, at which upstream, in whose words, and what they may cost at worst.

Each line is held against the same policy as a call of its own: models, ceilings, prices, and whose the things are that it builds on. What the
upstream gets is written anew, with its own names of the models, so that it finds nothing in a line that was not read here.
"""

from __future__ import annotations

import asyncio

import msgspec

from controlplane.contract.pricing import Price, worst_case_nanousd
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.snapshot import Unpriced
from proxy import refusals
from proxy.call import Call, Reply
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.filed import LINE_URLS, Line, Request, decode_line
from proxy.dialects.hosted_request import HOSTING, hosted_nanousd_max, read_hosted
from proxy.dialects.operations import dialect_of
from proxy.dialects.other_models import may_name_others, others_named
from proxy.refusals import Refusal, refuse
from proxy.runtime import Candidate
from proxy.transports.owners import Batched, BatchModel
from proxy.transports.places import all_of, serves
from proxy.view import read_view

MODELS_MAX = 64  # of one batch
BATCH = "batch"
_TURN_LINES = 32  # after which everybody else has a turn
_URL = {operation: url for url, operation in LINE_URLS.items()}
_encode = msgspec.json.Encoder().encode
_Kept = tuple[int, str, str]  # number of the line, field, id


class LineRefused(Exception):
    """A line that may not be; carries the refusal and says which line and why."""

    def __init__(self, refusal: Refusal, number: int, why: str) -> None:
        super().__init__(f"line {number}: {why}")
        self.refusal = refusal

    def reply(self, param: str) -> Reply:
        """What the client hears."""
        return refuse(self.refusal, str(self), param=param)


class BatchPlan:
    """Reads the lines of one batch, one after the other."""

    def __init__(self, call: Call, settings: ProxySettings, *, creates: str) -> None:
        """creates: the operation that makes such a batch; its upstreams are those that the lines may go to."""
        assert call.identity is not None, "identify comes first"  # noqa: S101
        self._call = call
        self._identity = call.identity
        self._settings = settings
        self._creates = creates
        self._models: dict[str, tuple[BatchModel, Candidate]] = {}  # by alias
        self._operation = ""
        self._lines = 0
        self._nanousd = 0
        self.candidate: Candidate | None = None  # the deployment of the first line: all go to its upstream
        self.kept: list[_Kept] = []  # what lines build on at the upstream

    @property
    def batched(self) -> Batched:
        """What the lines amount to."""
        return Batched(self._operation, self._lines, self._nanousd, tuple(model for model, _ in self._models.values()))

    async def file(self, content: bytes) -> bytes:
        """A file of requests as the upstream must have it. Raises LineRefused."""
        lines: list[bytes] = []
        for number, text in enumerate(content.split(b"\n"), start=1):
            if not text.strip():
                continue
            try:
                text.decode()
                line = decode_line(text)
            except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
                raise LineRefused(refusals.MALFORMED, number, f"it is no request of a batch: {error}") from error
            lines.append(_encode(self._line(number, line)).replace(b"\r", b" "))  # else a line could hold another
            if number % _TURN_LINES == 0:
                await asyncio.sleep(0)
        if not lines:
            raise LineRefused(refusals.MALFORMED, 1, "the file holds no request")
        return b"\n".join(lines) + b"\n"

    async def requests(self, asked: list[Request]) -> list[Request]:
        """The requests of a batch of Anthropic's as the upstream must have them. Raises LineRefused."""
        made: list[Request] = []
        for number, request in enumerate(asked, start=1):
            made.append(Request(request.custom_id, self._add(number, "messages", bytes(request.params))))
            if number % _TURN_LINES == 0:
                await asyncio.sleep(0)
        if not made:
            raise LineRefused(refusals.MALFORMED, 1, "the batch holds no request")
        return made

    def _line(self, number: int, line: Line) -> Line:
        operation = LINE_URLS.get(line.url)
        if operation is None:
            message = f"`{line.url[:64]}` cannot be asked for in a batch here; these can: {', '.join(LINE_URLS)}"
            raise LineRefused(refusals.MALFORMED, number, message)
        if line.method != "POST":
            raise LineRefused(refusals.MALFORMED, number, "`method` must be POST")
        if self._operation and operation != self._operation:
            message = f"`{line.url}` and `{_URL[self._operation]}` cannot be in one batch"
            raise LineRefused(refusals.MALFORMED, number, message)
        return Line(line.custom_id, line.url, self._add(number, operation, bytes(line.body)))

    def _add(self, number: int, operation: str, body: bytes) -> msgspec.Raw:
        """Checks one request, counts what it may cost, and writes it anew."""
        self._operation = operation
        self._lines += 1
        if self._lines > self._settings.batch_lines_max:
            message = f"a batch may hold {self._settings.batch_lines_max} requests (`batch_lines_max`)"
            raise LineRefused(refusals.TOO_LARGE, number, message)
        try:
            view = read_view(operation, body)
        except Malformed as error:
            raise LineRefused(refusals.MALFORMED, number, str(error)) from error
        if view.stream or view.background:
            raise LineRefused(refusals.MALFORMED, number, "a request of a batch has no `stream` and no `background`")
        allowed = self._identity.models
        if allowed is not None and may_name_others(body):
            other = next((name for name in others_named(body) if name not in allowed), None)
            if other is not None:
                message = f"model `{other[:128]}`, which the line names besides, is not allowed for this key"
                raise LineRefused(refusals.FORBIDDEN, number, message)
        ceiling = self._ceiling(number, view)
        model, candidate = self._models.get(view.model) or self._model(number, operation, view)
        self.kept += [(number, field, name) for field, name in view.continues]
        self._nanousd += self._worst(candidate, view, body, ceiling)
        if operation in HOSTING:
            self._nanousd += self._hosted(number, view, candidate.deployment.price, body)
        try:
            written = dialect_of(operation).rewritten(body, view=view, model=model.model, output_ceiling=ceiling)
        except Malformed as error:
            raise LineRefused(refusals.MALFORMED, number, str(error)) from error
        return msgspec.Raw(written)

    def _ceiling(self, number: int, view: RequestView) -> int | None:
        """The tenant's ceiling for an answer, where the line names none."""
        tenant = self._identity.tenant
        ceiling = tenant.max_output_tokens
        if ceiling is None or view.max_output_tokens is None:
            return ceiling
        if view.max_output_tokens > ceiling:
            message = f"tenant {tenant.id} may ask for at most {ceiling} output tokens, not {view.max_output_tokens}"
            raise LineRefused(refusals.FORBIDDEN, number, message)
        return None

    def _model(self, number: int, operation: str, view: RequestView) -> tuple[BatchModel, Candidate]:
        """A model that no line before has named, and where it is asked."""
        alias, shown = view.model, view.model[:128]
        allowed = self._identity.models
        if allowed is not None and alias not in allowed:
            raise LineRefused(refusals.FORBIDDEN, number, f"model `{shown}` is not allowed for this key")
        entry = self._call.runtime.routes.get(alias)
        if entry is None:
            raise LineRefused(refusals.NO_ROUTE, number, f"there is no model `{shown}`")
        can = [item for item in all_of(entry) if serves(item, self._creates) and serves(item, operation)]
        if not can:
            raise LineRefused(refusals.NO_ROUTE, number, f"no upstream of model `{shown}` takes batches of {operation}")
        first = self.candidate
        candidate = next((item for item in can if first is None or item.upstream.id == first.upstream.id), None)
        if candidate is None:
            message = f"model `{shown}` is not at the upstream of the models before it; make it a batch of its own"
            raise LineRefused(refusals.MALFORMED, number, message)
        deployment = candidate.deployment
        if deployment.price is None and self._identity.tenant.unpriced is Unpriced.REFUSE:
            message = f"model `{shown}` has no price and tenant `{self._identity.tenant.id}` allows only priced models"
            raise LineRefused(refusals.UNPRICED, number, message)
        if len(self._models) >= MODELS_MAX:
            raise LineRefused(refusals.MALFORMED, number, f"a batch may ask for {MODELS_MAX} models")
        self.candidate = first or candidate
        made = (BatchModel(alias, deployment.id, deployment.model, deployment.price), candidate)
        self._models[alias] = made
        return made

    def _hosted(self, number: int, view: RequestView, price: Price | None, body: bytes) -> int:
        """The most that the provider's own tools can cost in one line, as far as it bounds that; they need prices as a model does."""
        hosted = read_hosted(body)
        if price is None or not hosted.kinds:
            return 0
        lacking = next((kind for kind in hosted.kinds if getattr(price, kind) is None), None)
        if lacking is not None and self._identity.tenant.unpriced is Unpriced.REFUSE:
            tenant = self._identity.tenant.id
            message = f"model `{view.model[:128]}` has no price for `{lacking}` and tenant `{tenant}` allows only priced models"
            raise LineRefused(refusals.UNPRICED, number, message)
        return hosted_nanousd_max(hosted, price)

    def _worst(self, candidate: Candidate, view: RequestView, body: bytes, ceiling: int | None) -> int:
        """The most that one line can cost, in nano-USD, by the rule of `stages.reserve`; 0 without a price."""
        deployment, settings = candidate.deployment, self._settings
        if deployment.price is None or view.free:
            return 0
        files = view.image_parts * settings.image_tokens_max + view.sound_parts * settings.sound_tokens_max
        most = view.max_output_tokens if view.max_output_tokens is not None else ceiling
        tokens_out = (deployment.max_output_tokens if most is None else most) * view.n
        tokens_in = len(body) - view.file_bytes + files
        return max(
            worst_case_nanousd(tokens_in=tokens_in, tokens_out=tokens_out, price=price)
            for price in batch_prices(deployment.price)
        )


def batch_prices(price: Price) -> list[Price]:
    """What a batch may be charged at: its own prices, also together with other classes; where there are none, the standard one."""
    found = [service.price for service in price.service if service.name.split("+")[0] == BATCH]
    return found if any(service.name == BATCH for service in price.service) else [price, *found]
