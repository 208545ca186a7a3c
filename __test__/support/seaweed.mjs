// A SeaweedFS server on free loopback ports with a temporary directory: the S3 service that the tests and the benchmark
// talk to. It checks signatures, keeps versions and pages listings; unlike B2 it honours conditional PUTs (b2-proxy.mjs
// takes that away). Not a helper for anything but S3.

import { rmSync, writeFileSync } from "node:fs";
import path from "node:path";

import { freePorts, start, temporaryDirectory, waitFor } from "./processes.mjs";
import { createBucket, s3Request } from "./s3.mjs";
import { ensureTools } from "./tools.mjs";

/** Two pairs of credentials that may do everything: the second for what must not open the first one's repository. */
export const CREDENTIALS = { accessKey: "AK", secretKey: "SK" };
export const OTHER_CREDENTIALS = { accessKey: "AK2", secretKey: "SK2" };

/**
 * Starts a server and waits until it stores objects. Resolves to `{ endpoint, port, accessKey, secretKey, createBucket,
 * stop }`; buckets are never created by a PUT of an object, as on B2.
 */
export async function startSeaweed() {
  const { weed } = ensureTools("python");
  const directory = temporaryDirectory("seaweed");
  const identity = ({ accessKey, secretKey }) => ({
    name: accessKey,
    credentials: [{ accessKey, secretKey }],
    actions: ["Admin", "Read", "List", "Tagging", "Write"],
  });
  const identities = path.join(directory, "identities.json");
  writeFileSync(identities, JSON.stringify({ identities: [CREDENTIALS, OTHER_CREDENTIALS].map(identity) }));

  const services = ["master", "volume", "filer", "s3"];
  const ports = await freePorts(2 * services.length);
  const port = ports[services.indexOf("s3")];
  const server = start(
    weed,
    [
      "server",
      ...["-ip=127.0.0.1", "-ip.bind=127.0.0.1", `-dir=${directory}`, "-master.telemetry=false"],
      ...["-volume.max=400", "-master.volumeSizeLimitMB=512"],
      ...["-s3", `-s3.config=${identities}`, "-s3.autoCreateBucket=false"],
      // A bucket is also addressed as a name below this one, which every client takes for this machine.
      "-s3.domainName=localhost",
      ...["-s3.port.iceberg=0", "-s3.port.lance=0"],
      `-filer.localSocket=${path.join(directory, "filer.sock")}`,
      `-s3.localSocket=${path.join(directory, "s3.sock")}`,
      ...services.map((service, i) => `-${service}.port=${ports[i]}`),
      ...services.map((service, i) => `-${service}.port.grpc=${ports[services.length + i]}`),
    ],
    { cwd: directory },
  );
  const access = { endpoint: `http://127.0.0.1:${port}`, port, ...CREDENTIALS };
  const exited = () => {
    if (!server.hasExited) return;
    throw Object.assign(new Error(`SeaweedFS ended at once:\n${server.output().slice(-3000)}`), { fatal: true });
  };
  // Its parts come up one after the other: only a stored object shows that all of them are there.
  await waitFor("SeaweedFS to create a bucket", async () => (exited(), await createBucket(access, "ready"), true));
  const probe = { body: Buffer.from("ready") };
  await waitFor(
    "SeaweedFS to store an object",
    async () => (exited(), (await s3Request(access, "PUT", "/ready/probe", probe)).status === 200),
  );
  return {
    ...access,
    createBucket: (bucket) => createBucket(access, bucket),
    output: server.output,
    /** SIGKILL, since a clean end takes half a minute and nothing is kept anyway. */
    async stop() {
      await server.stop("SIGKILL");
      rmSync(directory, { recursive: true, force: true });
    },
  };
}
