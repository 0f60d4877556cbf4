"""Token counts of a prompt, and the prompt cache: what of it was read, what was written and for how long.

Anthropic publishes no tokenizer, so the simulated models count with OpenAI's; the surcharge for tools is Anthropic's published one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from controlplane.demo.provider.anthropic.request import Block, CacheControl, MessagesRequest
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.tokens import Tokenizer

START_TOKENS = 3
MESSAGE_TOKENS = 4
TOOLS_TOKENS = 346  # of the tool prompt with `auto` or `none`; source: Anthropic's pricing of tool use, Claude 4 models
FORCED_TOOLS_TOKENS = 313  # with `any` or `tool`
PICTURE_TOKENS = 1_568  # of a picture of unknown size, the most that one can cost
PIXELS_PER_TOKEN = 750  # source: Anthropic's guide to vision
LOOKED_BACK = 20  # blocks before a breakpoint that are looked up
PREFIXES_MAX = 50_000  # remembered
LIVES_S = {"5m": 300.0, "1h": 3600.0}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a prompt, in its order: tools, system, messages."""

    content: bytes
    tokens: int
    cached: CacheControl | None


@dataclass(frozen=True, slots=True)
class Cached:
    """What the prompt cache made of a prompt."""

    read: int = 0
    written_5m: int = 0
    written_1h: int = 0


def segments(request: MessagesRequest, tokenizer: Tokenizer) -> list[Segment]:
    """The prompt in parts, each with its tokens; they sum to the prompt's."""
    parts = [Segment(b"start", START_TOKENS, None)]
    if request.tools:
        forced = request.tool_choice is not None and request.tool_choice.type in ("any", "tool")
        parts.append(Segment(b"tools %d" % forced, FORCED_TOOLS_TOKENS if forced else TOOLS_TOKENS, None))
    for tool in request.tools or ():
        schema = msgspec.json.encode(tool.input_schema or {}, order="deterministic").decode()
        text = f"{tool.type}/{tool.name}/{tool.description}/{schema}"
        tokens = tokenizer.count(tool.name) + tokenizer.count(tool.description) + tokenizer.count(schema)
        parts.append(Segment(text.encode(errors="replace"), tokens, tool.cache_control))
    parts += (_segment("system", block, tokenizer, frame=0) for block in request.system_blocks)
    for message in request.messages:
        for position, block in enumerate(message.blocks):
            parts.append(_segment(message.role, block, tokenizer, frame=MESSAGE_TOKENS if position == 0 else 0))
    if request.cache_control is not None:
        last = parts[-1]
        parts[-1] = Segment(last.content, last.tokens, last.cached or request.cache_control)
    return parts


def _segment(role: str, block: Block, tokenizer: Tokenizer, *, frame: int) -> Segment:
    content = msgspec.json.encode(msgspec.structs.replace(block, cache_control=None))
    tokens = frame + sum(_tokens(part, tokenizer) for part in _flat(block))
    return Segment(role.encode() + content, tokens, block.cache_control)


def _flat(block: Block) -> Iterator[Block]:
    """A block and the blocks inside it."""
    yield block
    if isinstance(block.content, str):
        yield Block("text", block.content)
    elif isinstance(block.content, list):
        for part in block.content:
            if isinstance(part, dict):
                yield msgspec.convert({"type": "text"} | part, Block, strict=False)


def _tokens(block: Block, tokenizer: Tokenizer) -> int:
    """The tokens of one block. Thinking of earlier turns is not counted, as Anthropic strips it."""
    if block.type == "image":
        return _picture_tokens(block.source or {})
    tokens = tokenizer.count(block.text)
    if block.type == "tool_use":
        tokens += tokenizer.count(block.name) + tokenizer.count(msgspec.json.encode(block.input or {}).decode())
    elif block.type == "document":
        tokens += tokenizer.count(str((block.source or {}).get("data", "")))
    return tokens


def _picture_tokens(source: dict[str, object]) -> int:
    """Width times height by 750; the size is read from the head of a PNG."""
    data = source.get("data")
    if isinstance(data, str):
        try:
            head = base64.b64decode(data[:44], validate=True)
        except (binascii.Error, ValueError):
            return PICTURE_TOKENS
        if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 24:
            pixels = int.from_bytes(head[16:20]) * int.from_bytes(head[20:24])
            return max(1, min(PICTURE_TOKENS, -(-pixels // PIXELS_PER_TOKEN)))
    return PICTURE_TOKENS


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The prompt up to the end of each of its parts. marks: the parts with a breakpoint behind them."""

    digests: tuple[bytes, ...]
    totals: tuple[int, ...]  # tokens
    marks: tuple[tuple[int, CacheControl], ...]

    @property
    def tokens(self) -> int:
        """Of the whole prompt."""
        return self.totals[-1]


def prefixes(parts: list[Segment], model: Model) -> Prefixes:
    """What the prompt cache needs to know of a prompt."""
    running = hashlib.blake2b(model.name.encode(), digest_size=16)
    digests, totals, total = [], [], 0
    for part in parts:
        running.update(b"/%d/" % len(part.content) + part.content)
        total += part.tokens
        digests.append(running.digest())
        totals.append(total)
    marks = tuple((index, part.cached) for index, part in enumerate(parts) if part.cached is not None)
    return Prefixes(tuple(digests), tuple(totals), marks)


class PrefixCache:
    """The prompt cache of one upstream: prefixes up to a breakpoint, each with the time at which it is forgotten."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._until: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()

    def use(self, prompt: Prefixes, model: Model, owner: bytes) -> Cached:
        """Looks the longest known prefix up and writes the ones that end at a breakpoint. owner: prefixes are not shared."""
        if not prompt.marks:
            return Cached()
        now = self._now()
        hit = self._longest(prompt, model, owner, now)
        done = read = prompt.totals[hit] if hit >= 0 else 0
        written = {"5m": 0, "1h": 0}
        for index, control in prompt.marks:
            total = prompt.totals[index]
            if total < model.cache_from_tokens:
                continue
            if total > done:
                written[control.ttl] += total - done
                done = total
            self._remember((owner, prompt.digests[index]), now + LIVES_S[control.ttl])
        return Cached(read, written["5m"], written["1h"])

    def _longest(self, prompt: Prefixes, model: Model, owner: bytes, now: float) -> int:
        """The last part of the longest prefix that is known; -1 for none."""
        for mark, _ in reversed(prompt.marks):
            for index in range(mark, max(-1, mark - LOOKED_BACK), -1):
                known = self._until.get((owner, prompt.digests[index]), 0.0) > now
                if known and prompt.totals[index] >= model.cache_from_tokens:
                    return index
        return -1

    def _remember(self, place: tuple[bytes, bytes], until: float) -> None:
        self._until[place] = max(until, self._until.get(place, 0.0))
        self._until.move_to_end(place)
        if len(self._until) > PREFIXES_MAX:
            self._until.popitem(last=False)
