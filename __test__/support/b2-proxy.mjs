// A loopback proxy in front of an S3 server that counts, slows down, breaks, and refuses what Backblaze B2 refuses.
// It also answers b2_authorize_account and b2_list_buckets, and holds a key to its capabilities, its bucket and its prefix. It
// does not check S3 signatures: the server behind it does that.
//
// From JavaScript: `const proxy = await startProxy({ serverPort, personality: "b2", keyId: "AK", applicationKey: "SK" })`,
// then `proxy.stats`, `proxy.reset()` and `proxy.settings.failWith = "503"` while it runs.
// From a shell: node b2-proxy.mjs <server-port> [<listen-port>] ['{"personality":"b2"}']; GET /__stats shows the counters.

import http from "node:http";
import { Transform } from "node:stream";
import { fileURLToPath } from "node:url";

const DEFAULTS = {
  /** "plain", or "b2": 400 for checksum headers and control characters in a name, 501 for a conditional PUT. */
  personality: "plain",
  /** Milliseconds that each request waits before it is passed on. */
  latencyMs: 0,
  /** Bytes per second for all connections together; 0 is no limit. */
  uploadRate: 0,
  downloadRate: 0,
  /** Every n-th request fails in the way of `failWith`; 0 is never. */
  failEvery: 0,
  /**
   * "503" (SlowDown), "500", "429", "403" (in the middle of the work), "reset" (cut before the answer), "cut" (body cut in
   * the middle) or "lost" (passed on and done by the server, the answer dropped).
   */
  failWith: "503",
  /** What the key may do; whatever else it asks for is 403. */
  capabilities: [
    ...["listAllBucketNames", "listBuckets", "readBuckets", "listFiles", "readFiles", "writeFiles", "deleteFiles"],
    ...["readBucketRetentions", "readFileRetentions", "writeFileRetentions"],
  ],
  /** The bucket and the start of names that the key is restricted to; null for none. */
  bucketName: null,
  namePrefix: null,
  /** The lifecycle rules of every bucket, as b2_list_buckets shows them. */
  lifecycleRules: [],
  /** The pair that b2_authorize_account accepts; null accepts any. */
  keyId: null,
  applicationKey: null,
};

const freshStats = () => ({ requests: 0, byMethod: {}, status: {}, uploadedBytes: 0, downloadedBytes: 0, injected: 0 });
const count = (table, key) => (table[key] = (table[key] ?? 0) + 1);

/** Starts a proxy to `serverPort` on `port` (0: a free one). Other options are those of DEFAULTS, changeable in `settings`. */
export async function startProxy({ serverPort, port = 0, ...options }) {
  const settings = { ...DEFAULTS, ...options };
  const unknown = Object.keys(settings).filter((name) => !(name in DEFAULTS));
  if (unknown.length > 0) throw new Error(`no such setting of the proxy: ${unknown}`);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 128 });
  const lanes = { up: 0, down: 0 };
  const proxy = { settings, stats: freshStats(), reset: () => (proxy.stats = freshStats()) };

  /** One lane is shared by all connections: each chunk takes its turn and waits until its time has come. */
  const throttle = (lane, bytesPerSecond) =>
    new Transform({
      transform(chunk, _encoding, done) {
        const now = Date.now();
        lanes[lane] = Math.max(lanes[lane], now) + (chunk.length / bytesPerSecond) * 1000;
        setTimeout(() => done(null, chunk), lanes[lane] - now);
      },
    });

  const answerError = (request, response, status, code, message) => {
    count(proxy.stats.status, status);
    request.resume();
    response.writeHead(status, { "content-type": "application/xml" });
    response.end(
      `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>${message}</Message></Error>`,
    );
  };

  const pass = (request, response, fault) => {
    const target = { host: "127.0.0.1", port: serverPort, method: request.method, path: request.url };
    const upstream = http.request({ ...target, headers: request.headers, agent }, (answer) => {
      count(proxy.stats.status, answer.statusCode);
      if (fault === "lost") {
        answer.resume();
        return request.socket.destroy();
      }
      response.writeHead(answer.statusCode, answer.headers);
      const half = Number(answer.headers["content-length"] ?? 0) / 2;
      let passed = 0;
      answer.on("data", (chunk) => {
        proxy.stats.downloadedBytes += chunk.length;
        passed += chunk.length;
        if (fault === "cut" && passed > half) request.socket.destroy();
      });
      (settings.downloadRate > 0 ? answer.pipe(throttle("down", settings.downloadRate)) : answer).pipe(response);
    });
    upstream.on("error", () => {
      if (response.headersSent) response.destroy();
      else answerError(request, response, 502, "BadGateway", "the server behind the proxy did not answer");
    });
    request.on("data", (chunk) => (proxy.stats.uploadedBytes += chunk.length));
    response.on("close", () => upstream.destroy());
    (settings.uploadRate > 0 ? request.pipe(throttle("up", settings.uploadRate)) : request).pipe(upstream);
  };

  const server = http.createServer(async (request, response) => {
    if (request.url === "/__stats") return response.end(JSON.stringify(proxy.stats));
    if (request.url.endsWith("/b2_list_buckets")) return listBuckets(settings, request, response);
    if (request.url.startsWith("/b2api/")) return authorize(settings, proxy.url, request, response);
    proxy.stats.requests += 1;
    const isList = request.method === "GET" && /[?&](list-type|prefix|delimiter)=/.test(request.url);
    count(proxy.stats.byMethod, isList ? "LIST" : request.method);
    const refused = refusal(settings, request);
    if (refused) return answerError(request, response, ...refused);
    const isFaulty = settings.failEvery > 0 && proxy.stats.requests % settings.failEvery === 0;
    const fault = isFaulty ? settings.failWith : null;
    if (fault) proxy.stats.injected += 1;
    if (settings.latencyMs > 0) await new Promise((resolve) => setTimeout(resolve, settings.latencyMs));
    if (fault === "reset") return request.socket.destroy();
    if (fault in INJECTED_ANSWERS) return answerError(request, response, Number(fault), ...INJECTED_ANSWERS[fault]);
    pass(request, response, fault);
  });
  server.keepAliveTimeout = 60_000; // A reused connection must not meet a proxy that has just closed it.
  await new Promise((resolve, reject) => server.on("error", reject).listen(port, "127.0.0.1", resolve));
  proxy.port = server.address().port;
  proxy.url = `http://127.0.0.1:${proxy.port}`;
  proxy.authorizeUrl = `${proxy.url}/b2api/v3/b2_authorize_account`;
  proxy.stop = async () => {
    agent.destroy();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return proxy;
}

const INJECTED_ANSWERS = {
  403: ["AccessDenied", "not entitled"],
  429: ["TooManyRequests", "too many requests"],
  500: ["InternalError", "incident"],
  503: ["SlowDown", "Please reduce your request rate."],
};

/** What B2 would not do, as `[status, code, message]`. */
function refusal(settings, request) {
  if (settings.personality !== "b2") return null;
  if (!isEntitled(settings, request)) return [403, "AccessDenied", "not entitled"];
  const headers = Object.keys(request.headers);
  const checksum = headers.find((h) => h.startsWith("x-amz-checksum-") || h === "x-amz-sdk-checksum-algorithm");
  if (checksum) return [400, "InvalidArgument", `Unsupported header '${checksum}' received for this API call.`];
  if (request.method === "PUT" && (headers.includes("if-match") || headers.includes("if-none-match"))) {
    return [501, "NotImplemented", "A header you provided implies functionality that is not implemented"];
  }
  const name = decodeURIComponent(request.url.split("?")[0]);
  if (/[\x00-\x1f\x7f]/.test(name)) {
    return [400, "InvalidRequest", "File names must not contain unicode characters with codes less than 32"];
  }
  return null;
}

/** Whether the key may make a request. Deleting by name only hides, which takes the right to write. */
function isEntitled({ capabilities, bucketName, namePrefix }, { method, url }) {
  const { pathname, searchParams } = new URL(url, "http://b2");
  const [bucket, ...name] = decodeURIComponent(pathname).slice(1).split("/");
  const isListing = searchParams.has("list-type") || searchParams.has("versions");
  if (bucketName !== null && bucket !== bucketName) return false;
  const rules = ["lifecycle", "object-lock"].find((rule) => searchParams.has(rule));
  if (rules) return capabilities.includes({ lifecycle: "readBuckets", "object-lock": "readBucketRetentions" }[rules]);
  const start = isListing ? (searchParams.get("prefix") ?? "") : name.join("/");
  if (namePrefix !== null && !start.startsWith(namePrefix)) return false;
  if (isListing) return capabilities.includes("listFiles");
  if (method === "DELETE") return capabilities.includes(searchParams.has("versionId") ? "deleteFiles" : "writeFiles");
  return capabilities.includes(method === "PUT" ? "writeFiles" : "readFiles");
}

/** The answer of b2_list_buckets, which the token and the capability listBuckets are needed for. */
async function listBuckets({ capabilities, lifecycleRules }, request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  response.setHeader("content-type", "application/json");
  if (request.headers.authorization !== "token" || !capabilities.includes("listBuckets")) {
    response.writeHead(401);
    return response.end(JSON.stringify({ status: 401, code: "unauthorized", message: "" }));
  }
  const { bucketName } = JSON.parse(Buffer.concat(parts).toString());
  response.end(JSON.stringify({ buckets: [{ bucketId: "1", bucketName, bucketType: "allPrivate", lifecycleRules }] }));
}

/** The answer of b2_authorize_account, version 3, which names this proxy as the S3 endpoint. */
function authorize(settings, s3ApiUrl, request, response) {
  const basic = Buffer.from((request.headers.authorization ?? "").replace(/^Basic /i, ""), "base64").toString();
  response.setHeader("content-type", "application/json");
  if (settings.keyId !== null && basic !== `${settings.keyId}:${settings.applicationKey}`) {
    response.writeHead(401);
    return response.end(JSON.stringify({ status: 401, code: "unauthorized", message: "" }));
  }
  const { capabilities, bucketName, namePrefix } = settings;
  const storageApi = {
    ...{ apiUrl: s3ApiUrl, downloadUrl: s3ApiUrl, s3ApiUrl },
    ...{ absoluteMinimumPartSize: 5_000_000, recommendedPartSize: 100_000_000 },
    ...{ bucketId: bucketName && "1", bucketName, namePrefix, capabilities },
  };
  response.end(JSON.stringify({ accountId: "0123456789ab", authorizationToken: "token", apiInfo: { storageApi } }));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [serverPort, port = "0", settings = "{}"] = process.argv.slice(2);
  const proxy = await startProxy({ serverPort: Number(serverPort), port: Number(port), ...JSON.parse(settings) });
  console.log(`${proxy.url} to port ${serverPort}, authorize at ${proxy.authorizeUrl}`);
}
