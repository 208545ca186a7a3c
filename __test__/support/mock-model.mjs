// An OpenAI-style model for the gateway to talk to, on loopback, that answers by rules instead of thinking. In a user's
// message a line `SAY <text>` is answered with that text, `CALL <tool> <json>` with a call of that tool, `SLEEP <ms>` makes
// the answer slow; anything else is echoed. It implements chat completions only, plain and streamed.

import http from "node:http";

/**
 * Resolves to `{ baseUrl, apiKeys, requests, stop }`; `apiKeys` is the set of keys that clients have presented, `requests` are
 * the bodies of what they asked.
 */
export async function startMockModel() {
  const apiKeys = new Set();
  const requests = [];
  let answers = 0;
  const server = http.createServer(async (request, response) => {
    apiKeys.add((request.headers.authorization ?? "").replace(/^Bearer /, ""));
    const parts = [];
    for await (const part of request) parts.push(part);
    if (!request.url.endsWith("/chat/completions")) {
      response.setHeader("content-type", "application/json");
      return response.end(JSON.stringify({ object: "list", data: [{ id: "mock-1", object: "model" }] }));
    }
    const body = JSON.parse(Buffer.concat(parts));
    requests.push(body);
    const id = `answer_${++answers}`;
    const delay = /\bSLEEP (\d+)/.exec(userText(body.messages))?.[1] ?? 0;
    await new Promise((resolve) => setTimeout(resolve, Number(delay)));
    // A request without tools is OpenClaw's own, for instance for the summary of a conversation that holds our rules.
    const reply = body.tools?.length > 0 ? answer(body.messages, id) : { content: "A summary." };
    const message = { role: "assistant", ...reply };
    const finish_reason = message.tool_calls ? "tool_calls" : "stop";
    const usage = { prompt_tokens: 10, completion_tokens: 10, total_tokens: 20 };
    const base = { id, created: Math.floor(Date.now() / 1000), model: body.model };
    if (!body.stream) {
      response.setHeader("content-type", "application/json");
      const choices = [{ index: 0, finish_reason, message }];
      return response.end(JSON.stringify({ ...base, object: "chat.completion", choices, usage }));
    }
    response.writeHead(200, { "content-type": "text/event-stream" });
    const send = (event) => {
      response.write(`data: ${JSON.stringify({ ...base, object: "chat.completion.chunk", ...event })}\n\n`);
    };
    const delta = { ...message, tool_calls: message.tool_calls?.map((call, index) => ({ index, ...call })) };
    send({ choices: [{ index: 0, delta }] });
    send({ choices: [{ index: 0, delta: {}, finish_reason }] });
    send({ choices: [], usage });
    response.end("data: [DONE]\n\n");
  });
  await new Promise((resolve, reject) => server.on("error", reject).listen(0, "127.0.0.1", resolve));
  return {
    baseUrl: `http://127.0.0.1:${server.address().port}/v1`,
    apiKeys,
    requests,
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const textOf = ({ content }) =>
  typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("");

/** OpenClaw wraps runtime notes for the model into user messages; they are not what the user said. */
const withoutNotes = (text) =>
  text.replace(/<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>[\s\S]*?<<<END_OPENCLAW_INTERNAL_CONTEXT>>>/g, "").trim();

const isNote = (message) => message.role === "user" && withoutNotes(textOf(message)) === "";

function userText(messages) {
  const spoken = messages.filter((message) => message.role === "user" && !isNote(message));
  return spoken.length > 0 ? withoutNotes(textOf(spoken.at(-1))) : "";
}

function answer(messages, id) {
  const last = messages.filter((message) => message.role !== "system" && !isNote(message)).at(-1);
  if (last?.role === "tool") return { content: `The tool said: ${textOf(last).slice(0, 400)}` };
  const text = userText(messages);
  const call = /\bCALL (\w+) (\{.*\})/.exec(text);
  if (call) {
    const tool_calls = [{ id: `call_${id}`, type: "function", function: { name: call[1], arguments: call[2] } }];
    return { content: null, tool_calls };
  }
  return { content: /\bSAY (.*)/.exec(text)?.[1] ?? `echo: ${text.slice(0, 120)}` };
}
