"""The dispatcher on a real journal and a real receiver, with a clock that tests move."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from standardwebhooks import Webhook

from controlplane.alerts.alert import AlertRouter, AlertSink
from controlplane.alerts.dispatch import Dispatcher, make_sinks
from controlplane.clock import ManualClock
from controlplane.errors import ConfigError
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal
from controlplane.metrics import AlertMetrics
from controlplane.settings import AlertSettings
from tests.controlplane.alerts.receiver import SECRET, Receiver, receiving
from tests.controlplane.alerts.test_alert import note


class Cause(msgspec.Struct, frozen=True, tag="test.caused"):
    """What a notification is appended with."""


@pytest.fixture
def clock() -> ManualClock:
    """A clock that starts now, since verifiers look at the timestamp."""
    return ManualClock(start_us=time.time_ns() // 1000)


@pytest.fixture
def journal(tmp_path: Path, clock: ManualClock) -> Iterator[Journal]:
    """A fresh journal."""
    journal = Journal.open(f"sqlite:///{tmp_path}/journal.db", now_us=clock.now_us)
    yield journal
    journal.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    async with receiving() as receiver:
        yield receiver


class Sending:
    """A dispatcher with what tests look at."""

    def __init__(
        self, journal: Journal, clock: ManualClock, *configs: AlertSink, attempts_max: int = 12, timeout_s: float = 10.0
    ) -> None:
        self.journal, self.clock = journal, clock
        self.registry = CollectorRegistry()
        settings = AlertSettings(attempts_max=attempts_max, timeout_s=timeout_s)
        self.router = AlertRouter(configs)
        self.dispatcher = Dispatcher(
            journal,
            make_sinks(configs, settings, clock),
            settings,
            clock=clock,
            metrics=AlertMetrics(self.registry),
            chance=random.Random(1),
        )

    def say(self, number: int = 1) -> None:
        """Append a notification with its cause."""
        entries = self.router.entries(note(id=f"run_1/{number}"))
        self.journal.append("cause", None, [NewEvent(Cause())], outbox=entries)

    def count(self, result: str, kind: str = "webhook") -> float:
        """How many deliveries went that way."""
        return self.registry.get_sample_value("heph_alert_deliveries_total", {"kind": kind, "result": result}) or 0.0


def ops(receiver: Receiver, **changes: object) -> AlertSink:
    """A sink to the receiver."""
    config = AlertSink(name="ops", url=receiver.url, secret="env:TEST_HOOK_SECRET", allow_private=("127.0.0.1",))
    return msgspec.structs.replace(config, **changes)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret is in the environment, as an operator would put it there."""
    monkeypatch.setenv("TEST_HOOK_SECRET", SECRET)


async def test_what_was_appended_is_delivered_once(journal: Journal, clock: ManualClock, receiver: Receiver) -> None:
    """A notification reaches its receiver, verifies, and is not sent again."""
    sending = Sending(journal, clock, ops(receiver))
    sending.say()
    assert [1, 0] == [await sending.dispatcher.turn(), await sending.dispatcher.turn()]
    (got,) = receiver.got
    assert "hephaestus.run.escalated" == Webhook(SECRET).verify(got.body, got.headers)["type"]
    assert 1.0 == sending.count("ok")
    assert 0 == journal.outbox_waiting()


async def test_what_may_be_alarmed_on_is_there_before_it_happens(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """The figures of a sink begin at 0, so that an alarm on growth sees the first message that is given up."""
    sending = Sending(journal, clock, ops(receiver))
    await sending.dispatcher.turn()
    labels = {"kind": "webhook", "result": "given_up"}
    assert 0.0 == sending.registry.get_sample_value("heph_alert_deliveries_total", labels)


async def test_a_receiver_that_is_down_gets_it_later_under_the_same_id(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """Failures are retried by a schedule that grows, each time with the same webhook-id and body."""
    sending = Sending(journal, clock, ops(receiver))
    sending.say()
    receiver.status = 503
    await sending.dispatcher.turn()
    assert 0 == await sending.dispatcher.turn()
    clock.move(3.9)
    assert 0 == await sending.dispatcher.turn()
    clock.move(2.2)
    assert 1 == await sending.dispatcher.turn()
    clock.move(200)
    assert 0 == await sending.dispatcher.turn()
    receiver.status = 200
    clock.move(170)
    assert 1 == await sending.dispatcher.turn()
    assert 1 == len({(got.headers["webhook-id"], got.body) for got in receiver.got})
    assert (3, 2.0, 1.0) == (len(receiver.got), sending.count("retried"), sending.count("ok"))


async def test_a_crash_between_sending_and_marking_sends_again_with_the_same_id(
    journal: Journal, clock: ManualClock, receiver: Receiver, tmp_path: Path
) -> None:
    """A dispatcher that dies after the receiver took a message leaves it to the next one, who repeats it recognisably."""

    class Dying(Journal):
        def mark_sent(self, row: int) -> None:
            raise KeyboardInterrupt

    dying = Dying.open(f"sqlite:///{tmp_path}/journal.db", now_us=clock.now_us)
    first = Sending(dying, clock, ops(receiver))
    first.say()
    await first.dispatcher._take_wanted()
    with pytest.raises(KeyboardInterrupt):
        await first.dispatcher._serve(first.dispatcher._sinks["ops"], clock.now_us(), set())
    dying.close()
    second = Sending(journal, clock, ops(receiver))
    await second.dispatcher.turn()
    assert 2 == len(receiver.got)
    assert 1 == len({(got.headers["webhook-id"], got.body) for got in receiver.got})
    assert 0 == journal.outbox_waiting()


async def test_a_message_that_never_arrives_is_given_up_and_counted(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """After the last try the message is dead, which a metric says; nothing waits for ever."""
    sending = Sending(journal, clock, ops(receiver), attempts_max=3)
    sending.say()
    receiver.status = 500
    for _ in range(10):
        await sending.dispatcher.turn()
        clock.move(400)
    assert (3, 1.0, 0) == (len(receiver.got), sending.count("given_up"), journal.outbox_waiting())


async def test_a_receiver_that_is_gone_is_never_asked_again(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """410 disables the sink, also for the next process; a new address is a new start."""
    sending = Sending(journal, clock, ops(receiver))
    sending.say(1)
    sending.say(2)
    receiver.status = 410
    await sending.dispatcher.turn()
    assert 1 == len(receiver.got)
    restarted = Sending(journal, clock, ops(receiver))
    restarted.say(3)
    await restarted.dispatcher.turn()
    assert (1, 0) == (len(receiver.got), journal.outbox_waiting())
    receiver.status = 200
    moved = Sending(journal, clock, ops(receiver, url=receiver.url + "&new=1"))
    moved.say(4)
    await moved.dispatcher.turn()
    assert 2 == len(receiver.got)


async def test_a_receiver_is_asked_no_faster_than_it_wants(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """A burst is spread by the sink's rate; nothing is lost."""
    sending = Sending(journal, clock, ops(receiver, per_minute=3))
    for number in range(5):
        sending.say(number)
    assert [3, 0] == [await sending.dispatcher.turn(), await sending.dispatcher.turn()]
    clock.move(20)
    assert 1 == await sending.dispatcher.turn()
    clock.move(60)
    assert 1 == await sending.dispatcher.turn()
    assert 5 == len(receiver.got)


async def test_what_the_receiver_asks_for_is_waited(journal: Journal, clock: ManualClock, receiver: Receiver) -> None:
    """A longer retry-after wins over the schedule."""
    sending = Sending(journal, clock, ops(receiver))
    sending.say()
    receiver.status, receiver.extra = 429, "retry-after: 60\r\n"
    await sending.dispatcher.turn()
    clock.move(59)
    assert 0 == await sending.dispatcher.turn()
    clock.move(2)
    assert 1 == await sending.dispatcher.turn()


async def test_one_broken_sink_does_not_hold_up_another(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """Each sink is served by itself."""
    broken = AlertSink(name="broken", url="http://169.254.169.254/")
    sending = Sending(journal, clock, broken, ops(receiver))
    sending.say()
    await sending.dispatcher.turn()
    assert (1, 1.0, 1.0) == (len(receiver.got), sending.count("given_up"), sending.count("ok"))


async def test_a_receiver_that_hangs_costs_one_wait_a_turn(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """However many messages wait for it, the other sinks are served, and a turn lasts no longer than one timeout."""
    async with receiving() as hanging:
        hanging.hang = True
        stuck = ops(hanging, name="stuck")
        sending = Sending(journal, clock, stuck, ops(receiver), timeout_s=0.1)
        for number in range(5):
            sending.say(number)
        assert 6 == await sending.dispatcher.turn()
        assert (1, 5) == (len(hanging.got), len(receiver.got))
        await sending.dispatcher.aclose()


async def test_messages_for_a_removed_sink_are_given_up(
    journal: Journal, clock: ManualClock, receiver: Receiver
) -> None:
    """What waits for a sink that is no longer configured does not wait for ever."""
    Sending(journal, clock, ops(receiver)).say()
    without = Sending(journal, clock)
    await without.dispatcher.turn()
    assert (0, 1.0) == (journal.outbox_waiting(), without.count("given_up", "unknown"))


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([AlertSink(name="a", url="https://x", kind="pigeon")], "unknown kind `pigeon`"),
        ([AlertSink(name="a", url="https://x"), AlertSink(name="a", url="https://y")], "two sinks"),
    ],
)
def test_a_bad_configuration_is_refused(clock: ManualClock, configs: list[AlertSink], message: str) -> None:
    """Kinds that do not exist and names that are there twice are errors."""
    with pytest.raises(ConfigError, match=message):
        make_sinks(configs, AlertSettings(), clock)


async def test_sinks_change_while_it_runs(journal: Journal, clock: ManualClock, receiver: Receiver) -> None:
    """After a reload what waits goes to the new address of its sink, without a restart and at the rate that was left."""
    nowhere = ops(receiver, url="http://127.0.0.1:1/", per_minute=2)
    sending = Sending(journal, clock, nowhere)
    sending.say(1)
    await sending.dispatcher.turn()
    clock.move(7)
    sending.dispatcher.use(make_sinks([ops(receiver, per_minute=2)], AlertSettings(), clock))
    assert 1 == await sending.dispatcher.turn()
    assert 1 == len(receiver.got)
    sending.say(2)
    assert 0 == await sending.dispatcher.turn()
    await sending.dispatcher.aclose()
