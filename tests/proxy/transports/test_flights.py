"""Tests of a flight between two workers, without Redis between them: whatever is lost, repeated or late, the bytes are the same."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import Outcome
from proxy.call import Reply, StreamBroken
from proxy.refusals import EXHAUSTED, Refused, refuse
from proxy.transports.flight_follow import MISSING_MAX, UNHEARD_MAX, UNKNOWN_MAX, Followed
from proxy.transports.flight_lead import SILENT_MAX, Buffers, Led
from proxy.transports.flight_words import Attach, Bill, Detach, End, Gone, Head, News, Seals
from tests.proxy.state_fakes import FakeStream, complete_reply, stream_reply

TAG, TOKEN, INBOX = b"tag", b"token", b"inbox"


async def _alive() -> bool:
    return True


class Line:
    """A leader and a follower with a channel between them that the test can disturb."""

    def __init__(self, *, bytes_max: int = 10**6) -> None:
        self.led = Led(TAG, TOKEN, b"key", leader=b"me", pump=lambda _led, _inbox: None, bytes_max=bytes_max)
        self.asked: list[int] = [0]
        self.followed = Followed(TAG, TOKEN, ask=self.asked.append, bytes_max=bytes_max)
        self.words: list[News | Gone] = []

    def attach(self) -> bool:
        """The oldest wish of the follower reaches the leader."""
        return self.led.attach(INBOX, self.asked.pop(0)) if self.asked else True

    def pump(self) -> None:
        """The leader says what is new."""
        while (word := self.led.news_for(INBOX)) is not None:
            self.words.append(word)

    def deliver(self, at: int = 0) -> None:
        """One of the words arrives."""
        word = self.words.pop(at)
        if isinstance(word, News):
            self.followed.take(word)
        else:
            self.followed.lose(alone=word.alone)

    async def exchange(self) -> bool:
        """The channel is undisturbed for a moment: all that was asked and said arrives."""
        while self.words or self.asked:
            self.attach()
            self.pump()
            if self.words:
                self.deliver()
        return True

    async def read_all(self) -> list[bytes]:
        """What the follower can read to the end; whatever is missing it asks for again."""
        got = []
        await self.exchange()
        while chunk := await self.followed.next(silence_s=0.0001, alive=self.exchange):
            got.append(chunk)
        return got


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=5), max_size=12),
    st.lists(
        st.tuples(st.sampled_from(["add", "attach", "pump", "deliver", "lose", "repeat"]), st.integers(0, 5)),
        max_size=40,
    ),
)
def test_any_loss_order_and_repetition_gives_the_same_bytes(chunks: list[bytes], steps: list[tuple[str, int]]) -> None:
    """Whatever the channel does while the answer comes, the follower has all of it in the end, each chunk once and in order."""

    async def run() -> None:
        line = Line()
        reply = stream_reply(FakeStream())
        line.led.begin(reply)
        left = list(chunks)
        for step, number in steps:
            if step == "add" and left:
                line.led.add(left.pop(0))
            elif step == "attach":
                line.attach()
            elif step == "pump":
                line.pump()
            elif line.words and step in ("deliver", "lose", "repeat"):
                at = number % len(line.words)
                if step == "repeat":
                    line.words.append(line.words[at])
                elif step == "lose":
                    line.words.pop(at)
                else:
                    line.deliver(at)
        for chunk in left:
            line.led.add(chunk)
        reply.complete, reply.finish_reason, reply.tokens = True, "stop", Tokens(input=3)
        line.led.finish(reply)
        assert chunks == await line.read_all()
        mine = line.followed.reply()
        assert mine is None or mine.status == 200
        end = Reply(200, [])
        line.followed.know_the_end(end)
        assert (True, "stop", Tokens(input=3)) == (end.complete, end.finish_reason, end.tokens)

    asyncio.run(run())


def test_a_whole_answer_goes_over_in_one_word() -> None:
    """Status, headers, body and what is known of it, as the leader has them."""
    line = Line()
    reply = complete_reply()
    line.led.begin(reply)
    assert line.attach()
    line.pump()
    line.deliver()
    mine = line.followed.reply()
    assert mine is not None
    assert (200, reply.headers, reply.body, "sim/m", "m") == (
        mine.status,
        mine.headers,
        mine.body,
        mine.deployment,
        mine.model,
    )
    assert (True, "stop", reply.tokens) == (mine.complete, mine.finish_reason, mine.tokens)
    assert not line.followed.is_stream


def test_who_comes_when_the_bill_is_made_does_not_get_it() -> None:
    """It is for those who were there: one that asks again has it once more, a late one has the answer alone."""
    line = Line()
    line.led.begin(stream_reply(FakeStream()))
    line.attach()
    line.pump()
    bill = Bill((), ((b"me", 1), (INBOX, 1)))
    line.led.finish(complete_reply(), bill=bill)
    assert line.led.attach(b"late", 0)
    assert line.led.attach(INBOX, 0)
    words = [line.led.news_for(inbox) for inbox in (INBOX, b"late")]
    assert [bill, None] == [word.end.bill for word in words if isinstance(word, News) and word.end is not None]


async def test_a_broken_stream_is_broken_for_the_follower_too() -> None:
    """With the outcome, the words and the error event of the leader's upstream."""
    line = Line()
    line.led.begin(stream_reply(FakeStream()))
    line.led.add(b"one")
    line.attach()
    line.led.finish(stream_reply(FakeStream()), StreamBroken(Outcome.TIMED_OUT, "too slow", event=b"data: no\n\n"))
    line.pump()
    line.deliver()
    assert b"one" == await line.followed.next(silence_s=1.0, alive=_alive)
    with pytest.raises(StreamBroken, match="too slow") as broken:
        await line.followed.next(silence_s=1.0, alive=_alive)
    assert (Outcome.TIMED_OUT, b"data: no\n\n") == (broken.value.outcome, broken.value.event)


def test_what_is_not_to_be_shared_is_not() -> None:
    """An answer beyond the limit: the follower asks for itself."""
    line = Line(bytes_max=10)
    assert line.attach()
    line.led.begin(complete_reply(b"x" * 20))
    line.pump()
    line.deliver()
    assert line.followed.reply() is None
    assert not line.led.may_attach


def test_a_refusal_goes_over_as_one() -> None:
    """With its line of the table and its words, so that each client gets it in its own protocol's shape."""
    line = Line()
    assert line.attach()
    line.led.begin(refuse(EXHAUSTED, "all failed"))
    line.pump()
    line.deliver()
    mine = line.followed.reply()
    assert mine is not None
    assert (502, Refused(EXHAUSTED, "all failed"), True) == (mine.status, mine.refusal, mine.complete)


def test_a_stream_beyond_the_limit_is_closed_to_joiners_and_bounded() -> None:
    """Who keeps up goes on; who comes later, or is further behind than the limit, is told to ask for itself."""
    line = Line(bytes_max=10)
    line.led.begin(stream_reply(FakeStream()))
    assert line.attach()
    for _ in range(10):
        line.led.add(b"xxxx")
        line.pump()
        line.deliver()
        line.followed._chunks.clear()
        line.followed._bytes = 0
    assert not line.led.attach(b"late", 0)
    for _ in range(10):
        line.led.add(b"xxxx")
    line.pump()
    assert [Gone(TAG, TOKEN, alone=True)] == line.words


def test_all_flights_together_are_bounded() -> None:
    """What would be too much for all of them is closed to joiners and kept for nobody; who leaves takes its part along."""
    buffers = Buffers(10)
    flights = [
        Led(TAG, TOKEN, b"key", leader=b"me", pump=lambda *_: None, bytes_max=10**6, buffers=buffers) for _ in "ab"
    ]
    for led in flights:
        led.begin(stream_reply(FakeStream()))
        led.add(b"123456")
    assert ([True, False], 6) == ([led.may_attach for led in flights], buffers.bytes_used)
    for led in flights:
        led.leave()
    assert 0 == buffers.bytes_used


async def test_a_leader_of_whom_nobody_knows_is_given_up() -> None:
    """After a silence the lease is looked at: gone means lost, unknown some times in a row too; alive means to ask again."""
    for answers, lost in (([False], True), ([None] * UNKNOWN_MAX, True), ([None, True, None, True, None, False], True)):
        line = Line()
        said = list(answers)

        async def alive(said: list[bool | None] = said) -> bool | None:
            return said.pop(0)

        in_time = await line.followed.wait_for_beginning(left_s=None, silence_s=0.0001, alive=alive)
        assert (True, lost, []) == (in_time, line.followed.reply() is None, said)
    late = Line()
    assert not await late.followed.wait_for_beginning(left_s=0.001, silence_s=60, alive=_alive)


@pytest.mark.parametrize("heard", [True, False])
async def test_a_leader_that_is_not_heard_is_not_waited_for(heard: bool) -> None:
    """Who has its lease and answers is waited for, however long it has nothing; whose words do not arrive is not."""
    line, looks = Line(), 0

    async def alive() -> bool:
        nonlocal looks
        looks += 1
        if heard:
            await line.exchange()
        return looks < 10

    assert await line.followed.wait_for_beginning(left_s=None, silence_s=0.0001, alive=alive)
    assert (10 if heard else UNHEARD_MAX + 1, not heard) == (looks, line.followed.alone)


@pytest.mark.parametrize("heard", [True, False])
async def test_a_stream_that_has_begun_outlives_its_lease(heard: bool) -> None:
    """A leader that answers leads, whatever Redis has forgotten; one of which there is neither a lease nor a word is gone."""
    line, looks = Line(), 0
    line.led.begin(stream_reply(FakeStream()))
    line.led.add(b"one")
    await line.exchange()
    assert b"one" == await line.followed.next(silence_s=60, alive=_alive)

    async def alive() -> bool:
        nonlocal looks
        looks += 1
        if looks == 5:
            line.led.add(b"two")
        if heard:
            await line.exchange()
        return False

    if heard:
        assert b"two" == await line.followed.next(silence_s=0.0001, alive=alive)
    else:
        with pytest.raises(StreamBroken):
            await line.followed.next(silence_s=0.0001, alive=alive)
    assert (5 if heard else MISSING_MAX) == looks


async def test_a_leader_that_is_heard_lives_though_redis_says_nothing_of_it() -> None:
    """Redis answers no look in time, but the leader's words come, one after each silence: the follower has all of them."""
    line = Line()
    line.led.begin(stream_reply(FakeStream()))
    await line.exchange()
    left = [b"%d" % number for number in range(2 * UNKNOWN_MAX)]

    async def alive() -> None:
        line.led.add(left.pop(0))
        line.pump()
        line.deliver()

    expected = left.copy()
    assert expected == [await line.followed.next(silence_s=0.0001, alive=alive) for _ in expected]


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(0, 200), st.integers(0, 7))
def test_only_our_own_words_are_heard(secret: bytes, channel: bytes, at: int, bit: int) -> None:
    """A word comes back as it was said; with one bit changed, for another channel or under another secret it is nothing."""
    seals = Seals(secret)
    for word in (
        Attach(b"f", b"t", b"i", 3),
        Detach(b"f", b"t", b"i"),
        News(b"f", b"t", 2, Head(200, ((b"a", b"b"),), stream=True), (b"x",), End(finish_reason="stop")),
        Gone(b"f", b"t", alone=True),
    ):
        sealed = seals.sealed(channel, word)
        assert word == seals.opened(channel, sealed)
        assert seals.opened(channel + b"x", sealed) is None
        assert Seals(secret + b"x").opened(channel, sealed) is None
        damaged = bytearray(sealed)
        damaged[at % len(sealed)] ^= 1 << bit
        assert seals.opened(channel, bytes(damaged)) is None


@given(st.lists(st.sampled_from(["stay", "attach", "deaf", "silent"]), max_size=4 * SILENT_MAX))
@settings(max_examples=50, deadline=None)
def test_only_who_says_nothing_for_long_is_counted_out(rounds: list[str]) -> None:
    """Any word counts, and rounds in which nobody could be heard count for nobody; who was counted out may come again."""
    line, silent = Line(), 0
    assert line.led.attach(INBOX, 0)
    for heard in rounds:
        if heard == "stay":
            line.led.hear(INBOX)
        elif heard == "attach":
            line.led.attach(INBOX, 0)
        follows = INBOX in line.led.followers
        silent = 0 if heard == "deaf" else 1 if heard != "silent" else silent + 1
        out = follows and silent > SILENT_MAX
        assert int(out) == line.led.count_out(deaf=heard == "deaf")
        assert (follows and not out) == (INBOX in line.led.followers)
    assert line.led.attach(INBOX, 0)
