"""The worker's ledger: what each tenant has spent in each budget window, and what its calls in flight may still spend.

Two amounts, two ways in:

- *Reserved* is what calls in flight may cost at worst. It belongs to the tenant, not to a window: a call that is in flight when a window
  ends will be settled in the next one, so its reservation is held against that one from its first moment.
- *Settled* moves only in `book`, which takes a record: the ledger is the sum of the spooled records by construction, over restarts too
  (see `proxy.spool`). A record belongs to the window in which its call was settled, `started_us + latency_us`.

A call is let in when, in every scope of its tenant, settled + reserved + its own worst case is within the limit. So no window is
ever overspent, as long as no call costs more than its reservation; those that do are counted (`exceeded_total`).

All is synchronous, in one event loop: nothing runs between the check and the move. A reservation is released and the call's record is
booked without an `await` in between. With several workers each enforces its `Share` of a limit. The kernel gives each
connection to a worker, so one that is busier than its siblings refuses while they still have room: never too much, at times too little.
What was spent is shared out evenly too when the proxy starts (`proxy.succession`), whatever the number of workers was before.

A clock that is put back finds the hour, day or month that it left, with what was spent in it: one ended window of each kind is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import BudgetStatus, TenantPolicy, Window

NEVER_US = 2**63 - 1
WINDOWS = tuple(Window)
TOKENS_PER_MINUTE = "tokens_per_minute"  # the scope of the policy's own token limit, beside those of its budgets

_MINUTE_US = 60_000_000
_HOUR_US = 60 * _MINUTE_US
_DAY_US = 24 * _HOUR_US
CLOCK_STEP_US = _MINUTE_US  # a clock that was put back by more than this goes back to earlier windows
KEPT = frozenset((Window.HOUR, Window.DAY, Window.MONTH))  # kinds of which one ended window is kept


class Settled(msgspec.Struct):
    """What was settled in one window, start included and end excluded."""

    start_us: int
    end_us: int
    nanousd: int = 0
    tokens: int = 0


class LedgerState(msgspec.Struct):
    """All that must survive the process: the settled amounts, never the reservations of calls that died with it."""

    calls: int = 0
    nanousd: int = 0
    tokens: int = 0
    tenants: dict[str, dict[Window, Settled]] = {}  # the window that is current
    ended: dict[str, dict[Window, Settled]] = {}  # the one before it, of the kinds in KEPT


class Share(msgspec.Struct, frozen=True):
    """The part of each limit that is one worker's. The parts of all workers sum to the limit, so some are zero where it is smaller."""

    worker: int = 0  # 0 <= worker < workers
    workers: int = 1

    def of(self, amount: int) -> int:
        """This worker's part of an amount >= 0; never falls when the amount grows."""
        part, rest = divmod(amount, self.workers)
        return part + (self.worker < rest)


ALL = Share()


class Refused(msgspec.Struct, frozen=True):
    """A limit that the call would pass."""

    scope: str  # `tokens_per_minute` or the budget's id
    unit: str  # "tokens" or "nanousd"
    limit: int  # of this worker
    limit_all: int  # of all workers
    used: int  # settled in this window
    reserved: int  # by calls in flight
    wanted: int  # by this call, at worst
    resets_us: int  # when the window ends; NEVER_US for a total


class Reservation:
    """What one call may cost at worst, held until it is released."""

    __slots__ = ("account", "nanousd", "tokens")

    def __init__(self, account: _Account, *, tokens: int, nanousd: int) -> None:
        self.account: _Account | None = account
        self.tokens = tokens
        self.nanousd = nanousd


class Ledger:
    """Settled and reserved amounts by tenant, and the worker's totals."""

    def __init__(self, *, share: Share = ALL) -> None:
        """share: this worker's part of each limit."""
        self._share = share
        self._accounts: dict[str, _Account] = {}
        self.calls = 0  # settled since this worker's first start
        self.nanousd = 0
        self.tokens = 0
        self.exceeded_total = 0  # calls that cost more than their reservation

    def reserve(self, policy: TenantPolicy, *, tokens: int, nanousd: int, now_us: int) -> Reservation | Refused:
        """Holds a call's worst case in every scope of its tenant, or in none and says which one refuses.

        tokens, nanousd: the worst case, >= 0. now_us: Unix microseconds.
        """
        account = self._account(policy.id)
        if policy.tokens_per_minute is not None:
            refused = self._refusal(
                TOKENS_PER_MINUTE, account.at(Window.MINUTE, now_us), account, tokens=(policy.tokens_per_minute, tokens)
            )
            if refused is not None:
                return refused
        for budget in policy.budgets:
            refused = self._refusal(
                budget.id,
                account.at(budget.window, now_us),
                account,
                tokens=None if budget.tokens is None else (budget.tokens, tokens),
                nanousd=None if budget.nanousd is None else (budget.nanousd, nanousd),
            )
            if refused is not None:
                return refused
        account.reserved_tokens += tokens
        account.reserved_nanousd += nanousd
        return Reservation(account, tokens=tokens, nanousd=nanousd)

    def tokens_left(self, policy: TenantPolicy, *, now_us: int) -> tuple[int, int, float] | None:
        """The limit of tokens per minute of this worker, what is neither settled nor held of it, and the seconds until it is whole."""
        if policy.tokens_per_minute is None:
            return None
        account = self._account(policy.id)
        minute = account.at(Window.MINUTE, now_us)
        limit = self._share.of(policy.tokens_per_minute)
        left = max(0, limit - minute.tokens - account.reserved_tokens)
        return limit, left, max(0, minute.end_us - now_us) / 1e6

    def release(self, reservation: Reservation) -> None:
        """Gives a reservation back; safe to call twice. What the call did cost is booked from its record."""
        account, reservation.account = reservation.account, None
        if account is not None:
            account.reserved_tokens -= reservation.tokens
            account.reserved_nanousd -= reservation.nanousd

    def book(self, record: CallRecord) -> None:
        """Settles one call: the only way in which settled amounts move."""
        tokens, nanousd = record.tokens.total, record.cost_nanousd
        self.calls += 1
        self.tokens += tokens
        self.nanousd += nanousd
        if record.tenant and (tokens or nanousd):
            self._account(record.tenant).settle(
                tokens=tokens, nanousd=nanousd, at_us=record.started_us + record.latency_us
            )

    def state(self) -> LedgerState:
        """The settled amounts as they are now; shares its parts with the ledger, so encode it before anything else runs."""
        tenants = {tenant: account.windows for tenant, account in self._accounts.items()}
        ended = {tenant: account.ended for tenant, account in self._accounts.items() if account.ended}
        return LedgerState(calls=self.calls, nanousd=self.nanousd, tokens=self.tokens, tenants=tenants, ended=ended)

    def replace(self, state: LedgerState) -> None:
        """Forgets what it holds and goes on from other amounts; nothing may be reserved."""
        self._accounts.clear()
        self.restore(state)

    def restore(self, state: LedgerState) -> None:
        """Continues from an earlier life's amounts; the ledger must be new."""
        self.calls, self.nanousd, self.tokens = state.calls, state.nanousd, state.tokens
        for tenant, windows in state.tenants.items():
            self._account(tenant).windows.update(windows)
        for tenant, windows in state.ended.items():
            self._account(tenant).ended.update(windows)

    def budgets(self, policies: Iterable[TenantPolicy], *, now_us: int) -> tuple[BudgetStatus, ...]:
        """Each budget of these tenants as this worker has it, those without any spending left out."""
        lines: list[BudgetStatus] = []
        for policy in policies:
            account = self._accounts.get(policy.id)
            if account is None:
                continue
            for budget in policy.budgets:
                settled = account.at(budget.window, now_us)
                lines.append(
                    BudgetStatus(
                        tenant=policy.id,
                        budget=budget.id,
                        window_start_us=settled.start_us,
                        settled_nanousd=settled.nanousd,
                        reserved_nanousd=account.reserved_nanousd,
                        settled_tokens=settled.tokens,
                        reserved_tokens=account.reserved_tokens,
                    )
                )
        return tuple(lines)

    def reserved(self, tenant: str) -> tuple[int, int]:
        """Tokens and nano-USD that the tenant's calls in flight hold."""
        account = self._accounts.get(tenant)
        return (0, 0) if account is None else (account.reserved_tokens, account.reserved_nanousd)

    def settled(self, tenant: str, window: Window, *, now_us: int) -> Settled:
        """What the tenant has settled in the window that holds `now_us`."""
        account = self._accounts.get(tenant)
        return _empty(window, now_us) if account is None else account.at(window, now_us)

    def _account(self, tenant: str) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
        return account

    def _refusal(
        self,
        scope: str,
        settled: Settled,
        account: _Account,
        *,
        tokens: tuple[int, int] | None,
        nanousd: tuple[int, int] | None = None,
    ) -> Refused | None:
        """What forbids a call in one scope; tokens and nanousd are pairs of limit and wanted, None without a limit."""
        for unit, asked, used, reserved in (
            ("tokens", tokens, settled.tokens, account.reserved_tokens),
            ("nanousd", nanousd, settled.nanousd, account.reserved_nanousd),
        ):
            if asked is None or not asked[1]:  # what costs nothing is not stopped by a pocket that is empty
                continue
            limit, wanted = self._share.of(asked[0]), asked[1]
            if used + reserved + wanted > limit:
                return Refused(scope, unit, limit, asked[0], used, reserved, wanted, settled.end_us)
        return None


class _Account:
    """One tenant: five current windows, whatever its budgets are today, so that a budget added later counts the past."""

    __slots__ = ("ended", "reserved_nanousd", "reserved_tokens", "windows")

    def __init__(self) -> None:
        self.windows: dict[Window, Settled] = {}
        self.ended: dict[Window, Settled] = {}  # the window before, of the kinds in KEPT
        self.reserved_tokens = 0
        self.reserved_nanousd = 0

    def at(self, window: Window, now_us: int) -> Settled:
        """The window of that kind which is current at `now_us`, opened anew if time has moved on."""
        settled = self.windows.get(window)
        if settled is None or now_us >= settled.end_us or now_us < settled.start_us - CLOCK_STEP_US:
            settled = self.windows[window] = self._turn(window, settled, now_us)
        return settled

    def _turn(self, window: Window, left: Settled | None, now_us: int) -> Settled:
        """The window of now in place of the one that time has left: the one before it if the clock was put back, else a new one."""
        before = self.ended.pop(window, None)
        if left is not None and window in KEPT:
            self.ended[window] = left
        if before is not None and before.start_us <= now_us < before.end_us:
            return before
        return _empty(window, now_us)

    def settle(self, *, tokens: int, nanousd: int, at_us: int) -> None:
        """Adds to each window that holds `at_us`; one that has ended since then keeps its spending to itself."""
        for window in WINDOWS:
            settled = self.windows.get(window)
            if settled is None or not settled.start_us <= at_us < settled.end_us:
                settled = self.at(window, at_us)
                if at_us < settled.start_us:
                    continue
            settled.tokens += tokens
            settled.nanousd += nanousd


def window_bounds(window: Window, at_us: int) -> tuple[int, int]:
    """Start (included) and end (excluded) of the UTC window that holds a moment, in Unix microseconds."""
    match window:
        case Window.TOTAL:
            return 0, NEVER_US
        case Window.MONTH:
            at = datetime.fromtimestamp(at_us // 1_000_000, UTC)
            start = datetime(at.year, at.month, 1, tzinfo=UTC)
            end = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
            return int(start.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000
        case Window.MINUTE:
            length_us = _MINUTE_US
        case Window.HOUR:
            length_us = _HOUR_US
        case Window.DAY:
            length_us = _DAY_US
    start_us = at_us - at_us % length_us
    return start_us, start_us + length_us


def _empty(window: Window, at_us: int) -> Settled:
    start_us, end_us = window_bounds(window, at_us)
    return Settled(start_us=start_us, end_us=end_us)
