// OpenAI's own client for Node: one scenario a run, its findings as JSON on standard output.
import OpenAI, { toFile } from "openai";
import { zodTextFormat, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [, , scenario, baseURL, apiKey] = process.argv;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Name three uses of a hammer." }];
const model = "gpt-4o-mini";
const tool = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const Hammer = z.object({ name: z.string(), weight_kg: z.number() });

const scenarios = {
  async chat() {
    const whole = await client.chat.completions.create({ model, messages });
    const stream = await client.chat.completions.create({
      model, messages, stream: true, stream_options: { include_usage: true },
    });
    let text = "", usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { whole: whole.choices[0].message.content, text, usage: [whole.usage.total_tokens, usage.total_tokens] };
  },
  async tools() {
    const asked = [{ role: "user", content: "Use the weather tool for Paris." }];
    const options = { model, messages: asked, tools: [tool], tool_choice: "required" };
    const whole = await client.chat.completions.create(options);
    const streamed = await client.chat.completions.stream(options).finalChatCompletion();
    const call = (answer) => answer.choices[0].message.tool_calls[0].function;
    return { whole: call(whole).arguments, streamed: call(streamed).arguments, name: call(streamed).name };
  },
  async structured() {
    const format = zodResponseFormat(Hammer, "hammer");
    const chat = await client.chat.completions.parse({ model, messages, response_format: format });
    const text = { format: zodTextFormat(Hammer, "hammer") };
    const response = await client.responses.parse({ model, input: "A hammer?", text });
    return { chat: chat.choices[0].message.parsed, response: response.output_parsed };
  },
  async responses() {
    const first = await client.responses.create({ model, input: "Name a hammer." });
    const stream = client.responses.stream({ model, input: "Another.", previous_response_id: first.id });
    const kinds = new Set();
    for await (const event of stream) kinds.add(event.type);
    const second = await stream.finalResponse();
    const again = await client.responses.retrieve(second.id);
    await client.responses.delete(first.id);
    return { previous: second.previous_response_id === first.id, same: again.output_text === second.output_text, kinds: [...kinds] };
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model: "text-embedding-3-small", input: ["a", "b", "a"], dimensions: 64 });
    const [first, second, third] = answer.data.map((item) => item.embedding);
    return { length: second.length, same: first.every((x, i) => x === third[i]), different: first.some((x, i) => x !== second[i]) };
  },
  async media() {
    const url = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    const asked = [{ role: "user", content: [{ type: "text", text: "What is it?" }, { type: "image_url", image_url: { url } }] }];
    const seen = await client.chat.completions.create({ model, messages: asked });
    const spoken = await client.audio.speech.create({ model: "tts-1", voice: "alloy", input: "A hammer.", response_format: "wav" });
    const sound = Buffer.from(await spoken.arrayBuffer());
    const heard = await client.audio.transcriptions.create({ model: "whisper-1", file: await toFile(sound, "a.wav") });
    const drawn = await client.images.generate({ model: "gpt-image-1", prompt: "A hammer." });
    const flagged = await client.moderations.create({ input: "A hammer." });
    return {
      seen: seen.choices[0].message.content.length > 0, sound: sound.length > 0, heard: typeof heard.text === "string",
      drawn: drawn.data[0].b64_json.length > 0, flagged: flagged.results.length,
    };
  },
  async models() {
    const names = [];
    for await (const found of client.models.list()) names.push(found.id);
    return { names };
  },
  async retries() {
    const statuses = {};
    const counting = async (...request) => {
      const answer = await fetch(...request);
      statuses[answer.status] = (statuses[answer.status] ?? 0) + 1;
      return answer;
    };
    const patient = new OpenAI({ baseURL, apiKey, maxRetries: 3, fetch: counting });
    for (let call = 0; call < 61; call++) await patient.models.list();
    return statuses;
  },
  async batches() {
    const body = { model: "gpt-4o-mini", messages };
    const line = JSON.stringify({ custom_id: "a", method: "POST", url: "/v1/chat/completions", body });
    const file = await client.files.create({ file: await toFile(Buffer.from(line), "in.jsonl"), purpose: "batch" });
    const made = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
    const done = await client.batches.retrieve(made.id);
    const text = await (await client.files.content(done.output_file_id)).text();
    const listed = [];
    for await (const batch of client.batches.list({ limit: 1 })) listed.push(batch.id);
    return { status: done.status, answer: JSON.parse(text).response.status_code, listed: listed.includes(made.id) };
  },
  async cross() {
    const answer = await client.chat.completions.create({ model: "claude-sonnet-4-6", messages, max_tokens: 50 });
    return { text: answer.choices[0].message.content };
  },
  async errors() {
    const told = async (work) => {
      try { await work(); } catch (error) { return [error.constructor.name, error.status, error.code]; }
    };
    return {
      denied: await told(() => new OpenAI({ baseURL, apiKey: "sk-heph-nobody", maxRetries: 0 }).models.list()),
      missing: await told(() => client.chat.completions.create({ model: "gpt-nothing", messages })),
      late: await told(() => client.chat.completions.create({ model: "hanging", messages }, { timeout: 300 })),
    };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
