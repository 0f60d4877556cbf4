"""What the agents of the fleet do: one habit each, thin but real, so that every feature of the proxy has somebody who needs it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from controlplane.demo.caller import Caller, Message, Tool

CHAT_TURNS_MAX = 12  # of a long chat before the next one begins
LOOPS_MAX = 20  # of the agent that loops, before somebody restarts it
LESSONS_MAX = 6  # of the tutor before the next pupil
RESEARCH_TURNS = 5  # of the researcher, on average
BURST = 6  # identical questions at the same time
_QUESTIONS = (
    "How do I reset my password?",
    "Where can I see my invoices?",
    "How do I invite a colleague to my workspace?",
    "Which browsers do you support?",
    "How do I cancel my subscription?",
    "Can I change the currency of my plan?",
    "How do I export my data?",
    "Is there a discount for schools?",
    "How do I turn on two-factor authentication?",
    "Why was my card declined?",
    "How do I change the language of the app?",
    "Do you have an on-premises version?",
)
_SUBJECTS = (
    "gardening in small flats", "a trip to Lisbon", "learning the cello", "choosing a bicycle", "baking with rye", "the night sky",
    "running a first marathon", "repairing old radios",
)  # fmt: skip
_CITIES = ("Paris", "Nairobi", "Lima", "Osaka", "Tromso", "Hobart", "Quebec", "Tbilisi")
_GENRES = ("a sea story", "a detective story", "a fable", "a letter from the future", "a short play", "a travel report")
_HEADLINES = (
    "storm warning on the coast",
    "central bank decision",
    "transfer of a football star",
    "new comet",
    "strike at the harbour",
)
_WEATHER: Tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place for some days.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The name of the city."},
                "days": {"type": "integer", "minimum": 1, "maximum": 7, "description": "How many days."},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "The unit."},
            },
            "required": ["city", "days", "unit"],
            "additionalProperties": False,
        },
    },
}
_SEARCH: Tool = {
    "type": "function",
    "function": {
        "name": "search_tickets",
        "description": "Searches the ticket system.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "enum": ["open incidents in checkout"], "description": "What to find."}
            },
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}
_LABEL: Tool = {  # in Anthropic's words
    "name": "label",
    "description": "Puts a label on a letter.",
    "input_schema": {
        "type": "object",
        "properties": {
            "department": {"type": "string", "enum": ["billing", "support", "sales", "press"]},
            "urgent": {"type": "boolean", "description": "Whether it cannot wait."},
        },
        "required": ["department", "urgent"],
    },
}
_GUIDE = " ".join(
    f"Rule {number}: a change must say why it is made, must be as small as it can be, and must leave module {number} easier to test than before."
    for number in range(1, 61)
)


@dataclass(frozen=True, slots=True)
class FleetModels:
    """The model aliases that the fleet asks the proxy for."""

    small: str = "gpt-4o-mini"
    large: str = "gpt-4o"
    embedding: str = "text-embedding-3-small"
    remembering: str = "gpt-4.1-mini"  # asked for responses that go on from each other
    claude: str = "claude-haiku-4-5"
    claude_large: str = "claude-sonnet-5"


@dataclass(slots=True)
class Agent:
    """One agent at work: how it calls, what it draws its luck from, and what it remembers."""

    caller: Caller
    models: FleetModels
    draw: random.Random
    sessions: int = 0
    history: list[Message] = field(default_factory=list)
    last_id: str = ""  # of the response that the conversation goes on from

    def session(self) -> str:
        """The name of the conversation it is in."""
        return f"{self.caller.agent}-{self.sessions}"

    def next_session(self) -> str:
        """Forgets everything and begins a new conversation."""
        self.sessions += 1
        self.history = []
        self.last_id = ""
        return self.session()


@dataclass(frozen=True, slots=True)
class Habit:
    """A way to behave: one turn of it, and how long the agent usually pauses between two turns."""

    agent: str
    turn: Callable[[Agent], Awaitable[None]]
    pause_s: float


async def ask_often(agent: Agent) -> None:
    """An FAQ bot: few questions, asked again and again, some much more than others."""
    weights = [1 / (rank + 1) for rank in range(len(_QUESTIONS))]
    question = agent.draw.choices(_QUESTIONS, weights)[0]
    messages: list[Message] = [
        {"role": "system", "content": "You answer questions of customers in at most five sentences."},
        {"role": "user", "content": question},
    ]
    await agent.caller.chat(agent.models.small, messages, session=agent.next_session())


async def chat_long(agent: Agent) -> None:
    """A companion: one conversation that grows with every turn."""
    if not agent.history or len(agent.history) >= 2 * CHAT_TURNS_MAX:
        agent.next_session()
    subject = agent.draw.choice(_SUBJECTS)
    question: Message = {"role": "user", "content": f"Tell me more about {subject}, and what surprised you in it."}
    answer = await agent.caller.chat(agent.models.small, [*agent.history, question], session=agent.session())
    if answer is not None:
        agent.history += [question, answer.as_message()]


async def write_streaming(agent: Agent) -> None:
    """A writer: long streamed texts; now and then its reader loses patience and leaves."""
    genre, subject = agent.draw.choice(_GENRES), agent.draw.choice(_SUBJECTS)
    words = agent.draw.choice((80, 120, 160, 240))
    messages: list[Message] = [{"role": "user", "content": f"Write {genre} about {subject} in {words} words."}]
    leave_after = agent.draw.randint(5, 40) if agent.draw.random() < 0.1 else None
    await agent.caller.stream(agent.models.small, messages, session=agent.next_session(), leave_after=leave_after)


async def call_tools(agent: Agent) -> None:
    """A desk that looks things up: question, tool call, tool result, answer."""
    session = agent.next_session()
    city = agent.draw.choice(_CITIES)
    messages: list[Message] = [{"role": "user", "content": f"Please get the weather in {city} for the weekend."}]
    asked = await agent.caller.chat(agent.models.small, messages, session=session, tools=[_WEATHER])
    if asked is None or not asked.calls:
        return
    messages.append(asked.as_message())
    for call_id, _, _ in asked.calls:
        degrees = agent.draw.randint(-5, 35)
        messages.append(
            {"role": "tool", "tool_call_id": call_id, "content": f'{{"degrees": {degrees}, "sky": "clear"}}'}
        )
    await agent.caller.chat(agent.models.small, messages, session=session, tools=[_WEATHER])


async def embed_documents(agent: Agent) -> None:
    """A librarian: batches of passages, of which some come back unchanged."""
    shelf = agent.draw.randint(1, 12)
    texts = [
        f"Passage {page} of shelf {shelf}: notes on {_SUBJECTS[page % len(_SUBJECTS)]}."
        for page in range(agent.draw.randint(1, 8))
    ]
    await agent.caller.embed(agent.models.embedding, texts, session=f"shelf-{shelf}")


async def loop_forever(agent: Agent) -> None:
    """A planner that is stuck: the same tool call again and again, each time with the same empty result."""
    if not agent.history or len(agent.history) > 2 * LOOPS_MAX:
        agent.next_session()
        agent.history = [{"role": "user", "content": "Find the ticket about the checkout outage and close it."}]
    answer = await agent.caller.chat(
        agent.models.small, agent.history, session=agent.session(), tools=[_SEARCH], tool_choice="required"
    )
    if answer is not None and answer.calls:
        agent.history.append(answer.as_message())
        agent.history += [{"role": "tool", "tool_call_id": call_id, "content": "[]"} for call_id, _, _ in answer.calls]


async def ask_in_bursts(agent: Agent) -> None:
    """A newsroom: everybody asks the same new question in the same moment."""
    session = agent.next_session()
    headline = agent.draw.choice(_HEADLINES)
    messages: list[Message] = [
        {
            "role": "user",
            "content": f"Edition {agent.draw.randint(1, 1_000_000)}: summarise the {headline} in 60 words.",
        }
    ]
    await asyncio.gather(*(agent.caller.chat(agent.models.small, messages, session=session) for _ in range(BURST)))


async def review_code(agent: Agent) -> None:
    """A reviewer: the large model, and the same long rules in front of every question."""
    module = agent.draw.randint(1, 400)
    messages: list[Message] = [
        {"role": "system", "content": f"You review code by these rules. {_GUIDE}"},
        {"role": "user", "content": f"Review the change to module {module}: it renames a function and adds a test."},
    ]
    await agent.caller.chat(agent.models.large, messages, session=agent.next_session())


async def research(agent: Agent) -> None:
    """A researcher: responses that go on from each other, whose past the provider remembers."""
    if agent.last_id and agent.draw.random() < 1 / RESEARCH_TURNS:
        agent.next_session()
    subject = agent.draw.choice(_SUBJECTS)
    question = f"What is known about {subject}, and what follows from the last answer?"
    instructions = "You are a careful researcher. Name what is not known."
    answer = await agent.caller.respond(
        agent.models.remembering,
        question,
        session=agent.session(),
        instructions=instructions,
        previous=agent.last_id or None,
    )
    agent.last_id = answer.id if answer is not None else ""


async def teach(agent: Agent) -> None:
    """A tutor on Claude: streamed lessons, and long rules in front of each that the provider is asked to cache."""
    if len(agent.history) >= 2 * LESSONS_MAX:
        agent.next_session()
    rules = {"type": "text", "text": f"You teach by these rules. {_GUIDE}", "cache_control": {"type": "ephemeral"}}
    question: Message = {
        "role": "user",
        "content": f"Explain {agent.draw.choice(_SUBJECTS)} to a beginner in 60 words.",
    }
    answer = await agent.caller.message_stream(
        agent.models.claude_large, [*agent.history, question], session=agent.session(), system=[rules]
    )
    if answer is not None:
        agent.history += [question, {"role": "assistant", "content": answer.text}]


async def sort_mail(agent: Agent) -> None:
    """A mail room on Claude: each letter gets its label by a tool that has to be called."""
    letter = f"Letter {agent.draw.randint(1, 200)}: {agent.draw.choice(_QUESTIONS)}"
    await agent.caller.message(
        agent.models.claude,
        [{"role": "user", "content": letter}],
        session=agent.next_session(),
        tools=[_LABEL],
        tool_choice={"type": "tool", "name": "label"},
    )


HABITS: tuple[Habit, ...] = (
    Habit("support-faq", ask_often, 0.6),
    Habit("chat-companion", chat_long, 1.5),
    Habit("story-writer", write_streaming, 2.0),
    Habit("weather-desk", call_tools, 2.0),
    Habit("librarian", embed_documents, 1.5),
    Habit("stuck-planner", loop_forever, 2.5),
    Habit("newsroom", ask_in_bursts, 5.0),
    Habit("code-reviewer", review_code, 4.0),
    Habit("researcher", research, 3.0),
    Habit("tutor", teach, 4.0),
    Habit("mail-room", sort_mail, 2.0),
)
