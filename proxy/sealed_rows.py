"""The rows of a ceiling in Redis, one for each worker: sealed, checked by every worker that reads them, and remembered.

A row is `seq settled held must at_ms seal slice end_ms`. What a worker says of itself is under a seal that only this installation can make,
for this ceiling, window and worker. The slice and its end are Redis' own words, because only a script can give slices in one step; but a
slice is never less than `must`, which is sealed and has what was left of the slice before. The row `*` is the largest total that
anybody heard of, sealed too.

So a worker never takes Redis' arithmetic as it is: it does the sum again over the rows whose seals are right, with what itself knows put in
the place of rows that vanished or went back, and uses the smaller slice of the two. Whose row vanished, went back or is forged may have had a
newer one; until there is one, or until any slice of it has ended, answers are refused, and the worker goes on with its part.
docs/explanation/quotas.md says what somebody who may write to Redis can still do.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import NamedTuple

from proxy.shared import Answer, Script, SharedUnavailable

REPORT = Script(
    "quota-report",
    """
    local key, me, seq, now = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
    local limit, settled, must = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
    local need, want, lease, keep = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
    local claim, most, star = ARGV[11], tonumber(ARGV[12]), ARGV[13]
    if now == 0 then
      local time = redis.call('TIME')
      now = time[1] * 1000 + math.floor(time[2] / 1000)
    end
    local flat, rows = redis.call('HGETALL', key), {}
    if #flat > 2048 then
      redis.call('DEL', key)
      flat = {}
    end
    for i = 1, #flat, 2 do rows[flat[i]] = flat[i + 1] end
    for i = 14, #ARGV, 3 do
      local name, seen, put = ARGV[i], ARGV[i + 1], ARGV[i + 2]
      if (rows[name] or '') == seen or (seen == '*' and rows[name]) then
        if put == '' then
          redis.call('HDEL', key, name)
          rows[name] = nil
        else
          redis.call('HSET', key, name, put)
          rows[name] = put
        end
      end
    end
    local total, others, active, answer = settled, 0, 1, {0, now}
    for name, row in pairs(rows) do
      answer[#answer + 1] = name
      answer[#answer + 1] = row
      if #row > 160 then
        row = ''
      end
      if name == '*' then
        local heard = tonumber(string.match(row, '^(%d+) %x+$') or '0')
        if heard >= most then
          most, star = heard, ''
        end
      else
        local q, s, m, l, e = string.match(row, '^(%d+) (%d+) %d+ (%d+) %d+ %x+ (%d+) (%d+)$')
        if q and name == me then
          if tonumber(q) >= seq then return {-1, now, name, row} end
        elseif q then
          total = total + s
          if tonumber(e) > now then
            others = others + math.max(tonumber(l), tonumber(m))
            active = active + 1
          end
        end
      end
    end
    local free = limit - math.max(total, most) - others
    local grant = math.max(must, math.min(need, free))
    if grant < free then
      grant = grant + math.min(math.max(want - grant, 0), math.floor((free - grant) / (2 * active)))
    end
    redis.call('HSET', key, me, claim .. string.format(' %.0f %.0f', grant, now + lease))
    if star ~= '' then
      redis.call('HSET', key, '*', star)
    end
    redis.call('PEXPIRE', key, keep)
    answer[1] = grant
    return answer
    """,
)
"""One worker's word about one ceiling, and the slice it gets: grant, Redis' clock, and all rows as they were before.

must: what it may have used meanwhile, always granted. need: what is held and what calls wait for. want: what it would like. claim: its row
but for what Redis adds. most, star: the largest total it has heard of, as a number and as a row. After these: three words for each row that
is put right - its name, how it was seen ('*': in whatever way), and what it is from now on.
"""

ROWS_MAX = 1_024  # of one ceiling; a hash with more than that was not made by us, and begins anew
_REPAIRS_MAX = 64  # with one report
_SKEW_MS = 1_000  # by which the clocks of two hosts may differ
_SEAL_BYTES = 16
_FIELDS = 8
_ROW_BYTES_MAX = 160
_STAR = b"*"
_ANY = b"*"
_PERSON = b"heph-quota-1"


class DoubtedRows(SharedUnavailable):
    """Rows of a limit are not as workers of this installation wrote them."""


class Row(NamedTuple):
    """What one worker said of one ceiling, and the slice that Redis gave it."""

    seq: int
    settled: int
    held: int
    slice: int
    until_ms: int  # by Redis' clock
    said_ms: int  # by the worker's own
    text: bytes


class Told(NamedTuple):
    """What an answer is worth after the sum was done again."""

    grant: int
    total: int  # settled by all
    others: int  # slices of the others
    spare: int  # what they do not hold of those


class RowSeals:
    """Seals and opens rows for one worker, and counts what it finds."""

    def __init__(self, secret: bytes, worker: str, *, lease_s: float, now_us: Callable[[], int]) -> None:
        """secret: of the installation, never in Redis. worker: as it is called there."""
        self._secret = secret
        self.worker = worker.encode()
        self.lease_ms = int(lease_s * 1000)
        self.now_us = now_us
        self.rows_forged_total = 0  # rows that nobody sealed
        self.rows_restored_total = 0  # rows that vanished or went back, put as they were
        self.grants_cut_total = 0  # slices larger than the sealed rows allow

    def sealed(self, key: bytes, name: bytes, claim: bytes) -> bytes:
        """A claim with its seal."""
        return b"%b %b" % (claim, self._seal(key, name, claim))

    def opened(self, key: bytes, name: bytes, text: bytes) -> Row | None:
        """A row, if a worker of this installation wrote it there and its slice is possible."""
        words = text.split(b" ", _FIELDS) if len(text) <= _ROW_BYTES_MAX else []
        if len(words) != _FIELDS or not (words[6].isdigit() and words[7].isdigit()):
            return None
        if not hmac.compare_digest(self._seal(key, name, b" ".join(words[:5])), words[5]):
            return None
        seq, settled, held, must, said_ms = map(int, words[:5])
        given = int(words[6])
        return None if given < must else Row(seq, settled, held, given, int(words[7]), said_ms, text)

    def opened_most(self, key: bytes, text: bytes) -> int | None:
        """The number in the row `*`, if one of us wrote it."""
        claim, _, seal = text.partition(b" ")
        if len(text) > _ROW_BYTES_MAX or not hmac.compare_digest(self._seal(key, _STAR, claim), seal):
            return None
        return int(claim)

    def _seal(self, key: bytes, name: bytes, claim: bytes) -> bytes:
        words = b"\x00".join((key, name, claim))
        return blake2b(words, key=self._secret, digest_size=_SEAL_BYTES, person=_PERSON).hexdigest().encode()


class SealedRows:
    """The rows of one ceiling in one window, as one worker has seen them."""

    __slots__ = ("_buried", "_doubted", "_gone", "_key", "_known", "_most", "_repairs", "_seals")

    def __init__(self, seals: RowSeals, key: bytes, gone: Iterable[str]) -> None:
        """gone: workers whose settled amounts live on in others; what they have here is emptied, by a row that says so."""
        self._seals = seals
        self._key = key
        self._gone = tuple(name.encode() for name in gone)
        self._buried = False
        self._known: dict[bytes, Row] = {}  # the others' newest, by their names
        self._doubted: dict[bytes, int] = {}  # whose newest row may be unknown, until when by Redis' clock
        self._repairs: dict[bytes, tuple[bytes, bytes]] = {}  # by name: how a row was seen, and how it ought to be
        self._most = 0  # the largest total that was heard of

    @property
    def key(self) -> bytes:
        """Where they are."""
        return self._key

    def words(self, seq: int, *, settled: int, held: int, must: int) -> tuple[bytes | int, ...]:
        """The end of a report's arguments: what is sealed of it, and which rows are put right."""
        seals, key = self._seals, self._key
        now_ms = seals.now_us() // 1000
        claim = seals.sealed(key, seals.worker, b"%d %d %d %d %d" % (seq, settled, held, must, now_ms))
        star = seals.sealed(key, _STAR, b"%d" % self._most) if self._most else b""
        repairs = [word for name, (seen, put) in self._repairs.items() for word in (name, seen, put)]
        if not self._buried:
            for name in self._gone[:_REPAIRS_MAX]:
                empty = seals.sealed(key, name, b"%d 0 0 0 %d" % (seq, now_ms)) + b" 0 0"
                repairs += (name, _ANY, empty)
        return claim, self._most, star, *repairs

    def newer(self, answer: Answer) -> int:
        """The number of the report that Redis already has of this worker, if it refused this one for its sake; else -1.

        A row in this worker's own place that it did not write is 0, and gone with the next report.
        """
        if not isinstance(answer, list) or answer[:1] != [-1]:
            return -1
        name, text = answer[2], answer[3]
        if not (isinstance(name, bytes) and isinstance(text, bytes)):
            return 0
        row = self._seals.opened(self._key, name, text)
        if row is None:
            self._seals.rows_forged_total += 1
            self._repair(name, text, b"")
        return 0 if row is None else row.seq

    def take(self, answer: Answer, *, limit: int, own: int, must: int) -> Told:
        """What an answer gives, after the sum was done again. Raises DoubtedRows, or SharedUnavailable for what is no answer."""
        grant, now_ms, rows = _parts(answer)
        self._repairs.clear()
        before = self._read(rows, now_ms)
        self._buried = True
        if any(until_ms > now_ms for until_ms in self._doubted.values()):
            raise DoubtedRows("rows of a limit in Redis are not as their workers wrote them")
        total, others, spare = own, 0, 0
        wall_ms = self._seals.now_us() // 1000
        for row in self._known.values():
            total += row.settled
            if row.until_ms > now_ms or row.said_ms + self._seals.lease_ms - _SKEW_MS > wall_ms:
                others += row.slice
                spare += row.slice - row.held
        if before is not None:
            self._most = max(self._most, total + max(0, before.settled - own))  # its own disk has forgotten that
        total = self._most = max(self._most, total)
        allowed = max(must, min(grant, limit - total - others))
        self._seals.grants_cut_total += allowed < grant
        return Told(allowed, total, others, spare)

    def _read(self, rows: dict[bytes, bytes], now_ms: int) -> Row | None:
        """Learns from the rows as they were, and gives this worker's own. What is wrong is put right by the next report."""
        seals, known = self._seals, self._known
        own: Row | None = None
        for name, text in rows.items():
            if name == _STAR:
                most = seals.opened_most(self._key, text)
                seals.rows_forged_total += most is None
                if most is None:
                    self._repair(name, text, b"")
                self._most = max(self._most, most or 0)
                continue
            row = seals.opened(self._key, name, text)
            newest = known.get(name)
            if name == seals.worker:
                own = row  # it is overwritten whatever it says
                seals.rows_forged_total += row is None
            elif row is None:
                self._refuse(name, text, now_ms)
            elif newest is None or row.seq > newest.seq:
                self._doubted.pop(name, None)
                if newest is not None or len(known) < ROWS_MAX:
                    known[name] = row
            elif text != newest.text:
                self._restore(name, text, newest)
                if row.seq < newest.seq:
                    self._doubt(name, now_ms)
        for name in known.keys() - rows.keys():
            self._restore(name, b"", known[name])
            self._doubt(name, now_ms)
        return own

    def _refuse(self, name: bytes, text: bytes, now_ms: int) -> None:
        self._seals.rows_forged_total += 1
        good = self._known.get(name)
        self._repair(name, text, b"" if good is None else good.text)
        self._doubt(name, now_ms)

    def _restore(self, name: bytes, seen: bytes, row: Row) -> None:
        self._seals.rows_restored_total += 1
        self._repair(name, seen, row.text)

    def _doubt(self, name: bytes, now_ms: int) -> None:
        """Whoever wrote this row had no slice from before that lasts for longer than a lease from now."""
        if self._doubted.get(name, 0) <= now_ms and (name in self._doubted or len(self._doubted) < ROWS_MAX):
            self._doubted[name] = now_ms + self._seals.lease_ms

    def _repair(self, name: bytes, seen: bytes, put: bytes) -> None:
        if len(self._repairs) < _REPAIRS_MAX:
            self._repairs[name] = (seen, put)


def _parts(answer: Answer) -> tuple[int, int, dict[bytes, bytes]]:
    if not isinstance(answer, list) or len(answer) < 2 or len(answer) % 2:
        raise SharedUnavailable("Redis answered something else")
    grant, now_ms = answer[0], answer[1]
    rows = {
        name: text
        for name, text in zip(answer[2::2], answer[3::2], strict=True)
        if isinstance(name, bytes) and isinstance(text, bytes)
    }
    if not isinstance(grant, int) or not isinstance(now_ms, int) or grant < 0:
        raise SharedUnavailable("Redis answered something else")
    return grant, now_ms, rows
