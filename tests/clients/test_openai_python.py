"""OpenAI's own client for Python."""

from __future__ import annotations

import base64
import io
import json
from typing import Any  # the SDK's typed dictionaries accept plain ones

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.clients.shows import shows
from tests.e2e.processes import World, eventually

pytestmark = pytest.mark.e2e
QUESTION: Any = [{"role": "user", "content": "Name three uses of a hammer."}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Tool(BaseModel):
    """An answer that fits a schema."""

    name: str
    weight_kg: float


@pytest.fixture
def client(gateway: World) -> OpenAI:
    """The client, as the documentation says."""
    return OpenAI(base_url=gateway.base_url, api_key=gateway.key(), max_retries=0)


@shows("OpenAI, Python", "plain", "stream", "usage")
def test_the_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    """Text, finish reason and usage are the same, streamed or not."""
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o-mini", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (whole.choices[0].message.content, whole.usage) == (text, chunks[-1].usage)


@shows("OpenAI, Python", "async")
async def test_the_asynchronous_client(gateway: World) -> None:
    """Calls, streams and the helper for streams work asynchronously."""
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key()) as client:
        whole = await client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
        async with client.chat.completions.stream(model="gpt-4o-mini", messages=QUESTION) as stream:
            final = await stream.get_final_completion()
    assert whole.choices[0].message.content == final.choices[0].message.content


@shows("OpenAI, Python", "tools")
def test_tools(client: OpenAI) -> None:
    """A tool is called with arguments, the same streamed or not, and its result is answered."""
    messages: Any = [{"role": "user", "content": "Use the weather tool for Paris."}]
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=[TOOL], tool_choice="required")
    with client.chat.completions.stream(
        model="gpt-4o-mini", messages=messages, tools=[TOOL], tool_choice="required"
    ) as stream:
        streamed = stream.get_final_completion()
    calls = [whole.choices[0].message.tool_calls, streamed.choices[0].message.tool_calls]
    call, other = ((each or [])[0] for each in calls)
    assert call.type == other.type == "function"
    assert ("weather", call.function.arguments) == (other.function.name, other.function.arguments)
    messages += [whole.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert (
        client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=[TOOL]).choices[0].message.content
    )


@shows("OpenAI, Python", "structured", "images")
def test_structured_answers_and_images(client: OpenAI) -> None:
    """The helper for schemas gives a typed object, also about an image."""
    content: Any = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = client.chat.completions.parse(
        model="gpt-4o-mini", messages=[{"role": "user", "content": content}], response_format=Tool
    )
    assert isinstance(answer.choices[0].message.parsed, Tool)


@shows("OpenAI, Python", "embeddings")
def test_embeddings(client: OpenAI) -> None:
    """A batch comes back in its order, each vector as long as asked."""
    answer = client.embeddings.create(model="text-embedding-3-small", input=["a", "b", "a"], dimensions=64)
    first, second, third = (item.embedding for item in answer.data)
    assert (64, first) == (len(second), third)
    assert first != second


@shows("OpenAI, Python", "state")
def test_responses_and_conversations(client: OpenAI) -> None:
    """Responses are made, streamed, continued, retrieved and deleted, and conversations keep their items."""
    first = client.responses.create(model="gpt-4o-mini", input="Name a hammer.")
    with client.responses.stream(model="gpt-4o-mini", input="Another one.", previous_response_id=first.id) as stream:
        second = stream.get_final_response()
    assert (first.id, second.output_text) == (
        second.previous_response_id,
        client.responses.retrieve(second.id).output_text,
    )
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    talk = client.conversations.create()
    client.responses.create(model="gpt-4o-mini", input="Hello.", conversation=talk.id)
    assert 2 <= len(client.conversations.items.list(talk.id).data)
    assert client.conversations.delete(talk.id).deleted


@shows("OpenAI, Python", "state", "structured", "tools")
def test_responses_with_schema_and_tools(client: OpenAI) -> None:
    """The Responses API gives typed objects and tool calls too."""
    typed = client.responses.parse(model="gpt-4o-mini", input="A hammer?", text_format=Tool)
    assert isinstance(typed.output_parsed, Tool)
    tool: Any = {"type": "function", "strict": False, **TOOL["function"]}
    called = client.responses.create(
        model="gpt-4o-mini", input="Use the weather tool for Paris.", tools=[tool], tool_choice="required"
    )
    assert ["weather"] == [item.name for item in called.output if item.type == "function_call"]


@shows("OpenAI, Python", "models")
def test_models(client: OpenAI) -> None:
    """The list has the aliases of the installation, and each can be retrieved."""
    names = {model.id for model in client.models.list()}
    assert {"gpt-4o-mini", "claude-sonnet-4-6"} <= names
    assert "gpt-4o-mini" == client.models.retrieve("gpt-4o-mini").id


@shows("OpenAI, Python", "media")
def test_the_other_endpoints(client: OpenAI) -> None:
    """Completions, moderations, speech, transcriptions and images pass through."""
    assert client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once").choices[0].text
    assert client.moderations.create(model="omni-moderation-latest", input="hello").results
    sound = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.", response_format="wav").content
    assert b"RIFF" == sound[:4]
    heard = client.audio.transcriptions.create(model="whisper-1", file=("hello.wav", io.BytesIO(sound)))
    assert heard.text
    picture = client.images.generate(model="gpt-image-1", prompt="a hammer").data
    assert picture
    assert b"\x89PNG" == base64.b64decode(picture[0].b64_json or "")[:4]


@shows("OpenAI, Python", "errors")
def test_errors_are_its_own_exceptions(gateway: World, client: OpenAI) -> None:
    """Who may not, what is not there and what makes no sense are the exceptions that programs catch."""
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=gateway.base_url, api_key="sk-heph-nobody").models.list()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-nothing", messages=QUESTION)
    assert ("no_route", "model") == (missing.value.code, missing.value.param)
    wrong: Any = "no list"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gpt-4o-mini", messages=wrong)


@shows("OpenAI, Python", "retries", "errors")
def test_its_retries_wait_as_long_as_they_are_told(gateway: World) -> None:
    """A client over its limit is told when to come back: with its own retries it never notices, without them it gets its own exception."""
    patient = OpenAI(base_url=gateway.base_url, api_key=gateway.key("brisk"), max_retries=3)
    assert any(patient.models.with_raw_response.list().retries_taken for _ in range(61))
    hasty = OpenAI(base_url=gateway.base_url, api_key=gateway.key("modest"), max_retries=0)
    with pytest.raises(openai.RateLimitError) as limited:
        [hasty.models.list() for _ in range(6)]
    headers = limited.value.response.headers
    assert ("true", True) == (headers["x-should-retry"], 0 < int(headers["retry-after"]) <= 60)
    assert "5" == headers["x-ratelimit-limit-requests"]


@shows("OpenAI, Python", "time-outs")
def test_its_time_out_ends_the_call(gateway: World) -> None:
    """A client that waits no longer gets its own exception, and the proxy has a record of a client that left."""
    user = f"timeout-{gateway.proxy_port}"
    client = OpenAI(base_url=gateway.base_url, api_key=gateway.key(), max_retries=0, timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="hanging", messages=QUESTION, extra_headers={"x-heph-user": user})
    query = f"SELECT outcome FROM calls WHERE user = '{user}'"
    assert [{"outcome": "client_closed"}] == eventually(lambda: gateway.sql(query), what="the record of the call")


@shows("OpenAI, Python", "cross")
def test_a_claude_model(client: OpenAI) -> None:
    """A model of Anthropic's answers this client: plain, streamed, with tools and with a schema."""
    whole = client.chat.completions.create(model="claude-sonnet-4-6", messages=QUESTION, max_tokens=200)
    with client.chat.completions.stream(model="claude-sonnet-4-6", messages=QUESTION, max_tokens=200) as stream:
        streamed = stream.get_final_completion()
    assert whole.choices[0].message.content == streamed.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    called = client.chat.completions.create(
        model="claude-sonnet-4-6",
        messages=[{"role": "user", "content": "Use the weather tool for Paris."}],
        tools=[TOOL],
        tool_choice="required",
        max_tokens=200,
    )
    assert called.choices[0].message.tool_calls
    typed = client.chat.completions.parse(model="claude-sonnet-4-6", messages=QUESTION, response_format=Tool)
    assert isinstance(typed.choices[0].message.parsed, Tool)


@shows("OpenAI, Python", "batches")
def test_batches(client: OpenAI, gateway: World) -> None:
    """A file of requests goes up, a batch of it is done, its answers come down, and it is booked at the price of batches."""
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini", "messages": QUESTION}}
        for n in range(3)
    ]  # fmt: skip
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"night": "1"}
    )
    done = client.batches.retrieve(made.id)
    assert ("completed", {"night": "1"}, file.id) == (done.status, done.metadata, done.input_file_id)
    assert done.output_file_id is not None
    answers = [json.loads(text)["response"]["body"] for text in client.files.content(done.output_file_id).iter_lines()]
    assert made.id in [batch.id for batch in client.batches.list(limit=1)]
    assert {file.id, done.output_file_id} <= {one.id for one in client.files.list(limit=1)}
    total = "tokens_input + tokens_cache_read + tokens_output AS total"
    query = f"SELECT {total}, cost_usd FROM calls WHERE operation = 'batch_usage' AND tags['heph-batch'] = '{made.id}'"
    (row,) = eventually(lambda: gateway.sql(query), what="the batch to be booked")
    usage = [answer["usage"] for answer in answers]
    cost = sum(one["prompt_tokens"] * 75 + one["completion_tokens"] * 300 for one in usage)  # nano-USD
    assert sum(one["total_tokens"] for one in usage) == int(str(row["total"]))
    assert cost == round(float(str(row["cost_usd"])) * 1e9)
    assert client.files.delete(done.output_file_id).deleted
