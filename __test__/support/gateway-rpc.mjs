// A client of the gateway's WebSocket, as a process of its own under Node 24: the tests' own Node may be 20, which has no
// WebSocket. `node gateway-rpc.mjs <ws-url>` with the token in GATEWAY_TOKEN reads requests as lines of JSON,
// `{ id, method, params }`, prints `{ id, payload }` or `{ id, error }` for each, `{ event, payload }` for the events of plugins
// and their approvals, and ends with its input. GATEWAY_CAPS are its capabilities.

import readline from "node:readline";

const socket = new WebSocket(process.argv[2]);
const send = (frame) => socket.send(JSON.stringify({ type: "req", ...frame }));
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

socket.onerror = (event) =>
  print({ id: "connect", error: { message: `no connection: ${event.message ?? "refused"}` } });
socket.onclose = (event) => {
  print({ id: "connect", error: { message: `the gateway closed the connection: ${event.code} ${event.reason}` } });
  process.exit(0);
};
socket.onmessage = ({ data }) => {
  const frame = JSON.parse(data);
  if (frame.type === "event" && frame.event === "connect.challenge") {
    const params = {
      ...{ minProtocol: 3, maxProtocol: 99, role: "operator", commands: [], permissions: {} },
      caps: process.env.GATEWAY_CAPS?.split(",") ?? [],
      client: { id: "gateway-client", version: "1", platform: "linux", mode: "backend" },
      scopes: ["operator.read", "operator.write", "operator.admin", "operator.approvals"],
      auth: { token: process.env.GATEWAY_TOKEN },
    };
    send({ id: "connect", method: "connect", params });
  } else if (frame.type === "event") {
    if (frame.event.startsWith("plugin.")) print({ event: frame.event, payload: frame.payload });
  } else if (frame.type === "res") {
    print(frame.ok ? { id: frame.id, payload: frame.payload } : { id: frame.id, error: frame.error });
  }
};

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => send(JSON.parse(line)))
  .on("close", () => process.exit(0));
