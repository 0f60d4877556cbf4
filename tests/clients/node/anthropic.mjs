// Anthropic's own client for Node: one scenario a run, its findings as JSON on standard output.
import Anthropic from "@anthropic-ai/sdk";
import { jsonSchemaOutputFormat } from "@anthropic-ai/sdk/helpers/json-schema";

const [, , scenario, baseURL, apiKey] = process.argv;
const client = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Name three uses of a hammer." }];
const model = "claude-sonnet-4-6";
const tools = [{
  name: "weather",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
}];
const hammer = {
  type: "object",
  properties: { name: { type: "string" }, weight_kg: { type: "number" } },
  required: ["name", "weight_kg"],
};
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

const scenarios = {
  async messages() {
    const whole = await client.messages.create({ model, max_tokens: 100, messages });
    const streamed = await client.messages.stream({ model, max_tokens: 100, messages }).finalMessage();
    const seen = (answer) => [answer.content.map((block) => block.text), answer.stop_reason, answer.usage.output_tokens];
    return { whole: seen(whole), streamed: seen(streamed) };
  },
  async tools() {
    const asked = [{ role: "user", content: "Use the weather tool for Paris." }];
    const options = { model, max_tokens: 200, messages: asked, tools, tool_choice: { type: "any" } };
    const whole = await client.messages.create(options);
    const streamed = await client.messages.stream(options).finalMessage();
    const use = (answer) => answer.content.find((block) => block.type === "tool_use");
    return { whole: use(whole).input, streamed: use(streamed).input, name: use(streamed).name };
  },
  async typed() {
    const output_config = { format: jsonSchemaOutputFormat(hammer) };
    const read = { type: "image", source: { type: "base64", media_type: "image/png", data: pixel } };
    const asked = [{ role: "user", content: [read, { type: "text", text: "What is it?" }] }];
    const found = {};
    for (const name of [model, "gpt-4o-mini"]) {
      const typed = await client.messages.parse({ model: name, max_tokens: 1000, messages, output_config });
      const seen = await client.messages.create({ model: name, max_tokens: 50, messages: asked });
      found[name] = { keys: Object.keys(typed.parsed_output).sort(), seen: seen.content[0].text.length > 0 };
    }
    return found;
  },
  async counting() {
    const counted = await client.messages.countTokens({ model, messages });
    const names = [];
    for await (const found of client.models.list()) names.push(found.id);
    return { tokens: counted.input_tokens, names };
  },
  async retries() {
    const statuses = {};
    const counting = async (...request) => {
      const answer = await fetch(...request);
      statuses[answer.status] = (statuses[answer.status] ?? 0) + 1;
      return answer;
    };
    const patient = new Anthropic({ baseURL, apiKey, maxRetries: 3, fetch: counting });
    for (let call = 0; call < 61; call++) await patient.models.list();
    return statuses;
  },
  async batches() {
    const params = { model: "claude-haiku-4-5", max_tokens: 50, messages };
    const made = await client.messages.batches.create({ requests: [{ custom_id: "a", params }] });
    const done = await client.messages.batches.retrieve(made.id);
    const results = [];
    for await (const line of await client.messages.batches.results(made.id)) results.push(line.result.type);
    const listed = [];
    for await (const batch of client.messages.batches.list({ limit: 1 })) listed.push(batch.id);
    return { status: done.processing_status, results, listed: listed.includes(made.id) };
  },
  async cross() {
    const answer = await client.messages.create({ model: "gpt-4o-mini", max_tokens: 50, messages });
    return { text: answer.content[0].text };
  },
  async errors() {
    const told = async (work) => {
      try { await work(); } catch (error) { return [error.constructor.name, error.status, error.error?.error?.type ?? null]; }
    };
    return {
      denied: await told(() => new Anthropic({ baseURL, apiKey: "sk-heph-nobody", maxRetries: 0 }).messages.create({ model, max_tokens: 5, messages })),
      missing: await told(() => client.messages.create({ model: "claude-nothing", max_tokens: 5, messages })),
      late: await told(() => client.messages.create({ model: "hanging", max_tokens: 5, messages }, { timeout: 300 })),
    };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
