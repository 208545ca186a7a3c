// The least of an S3 client that the tests need to look at a bucket from outside: signature version 4 and path style.
// It repeats nothing and streams nothing.

import { createHash, createHmac } from "node:crypto";
import http from "node:http";

const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const hmac = (key, data) => createHmac("sha256", key).update(data).digest();
const encode = (text) =>
  encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

/** One signed request to `server` ({ endpoint, accessKey, secretKey }); resolves to `{ status, body }`. */
export function s3Request(server, method, objectPath, { query = {}, body = Buffer.alloc(0) } = {}) {
  const url = new URL(server.endpoint);
  const amzDate = new Date().toISOString().replace(/[-:]|\.\d{3}/g, "");
  const date = amzDate.slice(0, 8);
  const canonicalPath = objectPath.split("/").map(encode).join("/");
  const canonicalQuery = Object.keys(query)
    .sort()
    .map((name) => `${encode(name)}=${encode(query[name])}`)
    .join("&");
  const headers = { host: url.host, "x-amz-content-sha256": sha256(body), "x-amz-date": amzDate };
  const signed = Object.keys(headers).join(";");
  const canonicalHeaders = Object.entries(headers)
    .map(([name, value]) => `${name}:${value}\n`)
    .join("");
  const request = [method, canonicalPath, canonicalQuery, canonicalHeaders, signed, sha256(body)].join("\n");
  const scope = `${date}/us-east-1/s3/aws4_request`;
  const key = [date, "us-east-1", "s3", "aws4_request"].reduce(hmac, `AWS4${server.secretKey}`);
  const signature = hmac(key, ["AWS4-HMAC-SHA256", amzDate, scope, sha256(request)].join("\n")).toString("hex");
  headers.authorization = `AWS4-HMAC-SHA256 Credential=${server.accessKey}/${scope}, SignedHeaders=${signed}, Signature=${signature}`;
  return new Promise((resolve, reject) => {
    const target = {
      host: url.hostname,
      port: url.port,
      method,
      headers: { ...headers, "content-length": body.length },
    };
    const outgoing = http.request({ ...target, path: `${canonicalPath}?${canonicalQuery}` }, (answer) => {
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.on("error", reject);
      answer.on("end", () => resolve({ status: answer.statusCode, body: Buffer.concat(parts) }));
    });
    outgoing.on("error", reject);
    outgoing.end(body);
  });
}

/** Creates a bucket; one that exists already is an error. */
export async function createBucket(server, bucket) {
  const { status, body } = await s3Request(server, "PUT", `/${bucket}`);
  if (status !== 200) throw new Error(`cannot create the bucket ${bucket}: ${status} ${body}`);
}

/** Every object of a bucket as `{ key, size }`, ordered by key. */
export async function listObjects(server, bucket) {
  const objects = [];
  let token;
  do {
    const query = { "list-type": "2", ...(token && { "continuation-token": token }) };
    const { status, body } = await s3Request(server, "GET", `/${bucket}`, { query });
    if (status !== 200) throw new Error(`cannot list the bucket ${bucket}: ${status} ${body}`);
    const xml = body.toString();
    for (const [, entry] of xml.matchAll(/<Contents>(.*?)<\/Contents>/gs)) {
      objects.push({ key: /<Key>(.*?)<\/Key>/s.exec(entry)[1], size: Number(/<Size>(\d+)<\/Size>/.exec(entry)[1]) });
    }
    token = /<NextContinuationToken>(.*?)<\/NextContinuationToken>/s.exec(xml)?.[1];
  } while (token);
  return objects;
}

/** Turns on that a bucket keeps versions, as every bucket of B2 does. */
export async function enableVersions(server, bucket) {
  const xml =
    '<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>';
  const { status, body } = await s3Request(server, "PUT", `/${bucket}`, {
    query: { versioning: "" },
    body: Buffer.from(xml),
  });
  if (status !== 200) throw new Error(`cannot turn on versions in the bucket ${bucket}: ${status} ${body}`);
}

/** Every version of the first thousand as `{ key, versionId, isMarker, isLatest }`. */
export async function listVersions(server, bucket) {
  const { status, body } = await s3Request(server, "GET", `/${bucket}`, { query: { versions: "" } });
  if (status !== 200) throw new Error(`cannot list the versions of the bucket ${bucket}: ${status} ${body}`);
  return [...body.toString().matchAll(/<(Version|DeleteMarker)>(.*?)<\/\1>/gs)].map(([, kind, entry]) => ({
    key: /<Key>(.*?)<\/Key>/s.exec(entry)[1],
    versionId: /<VersionId>(.*?)<\/VersionId>/s.exec(entry)[1],
    isMarker: kind === "DeleteMarker",
    isLatest: /<IsLatest>true</.test(entry),
  }));
}
