// Verdaccio on loopback: a real npm registry, to which packages are published and from which npm and OpenClaw install them. It
// has what was published to it and asks no other registry.

import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";

import { freePorts, run, start, temporaryDirectory, waitFor } from "./processes.mjs";
import { ensureTools, projectDir } from "./tools.mjs";

/** JSON is YAML. */
const configuration = (directory) => ({
  storage: path.join(directory, "storage"),
  web: { enable: false },
  auth: { htpasswd: { file: path.join(directory, "htpasswd"), max_users: -1 } },
  uplinks: {},
  packages: { "**": { access: "$all", publish: "$all" } },
  max_body_size: "300mb",
  log: { type: "stdout", format: "pretty", level: "http" },
});

/**
 * Starts a registry. Resolves to `{ url, env, publish(directory), release(directory), output(), stop() }`; `env` is what makes npm,
 * and whatever runs it, use this registry, with a cache and settings of its own.
 */
export async function startVerdaccio() {
  const { node, verdaccio } = ensureTools("verdaccio");
  const directory = temporaryDirectory("verdaccio");
  mkdirSync(path.join(directory, "storage"));
  const config = path.join(directory, "config.yaml");
  writeFileSync(config, JSON.stringify(configuration(directory)));
  const [port] = await freePorts(1);
  const listen = `127.0.0.1:${port}`;
  const server = start(node, [verdaccio, "--config", config, "--listen", listen], { cwd: directory });
  const url = `http://${listen}/`;
  await waitFor("Verdaccio to answer", async () => {
    if (server.hasExited) throw Object.assign(new Error(`it ended:\n${server.output()}`), { fatal: true });
    return (await fetch(`${url}-/ping`)).ok;
  });
  const npmrc = path.join(directory, "npmrc");
  // npm publishes nothing without a token; this registry looks at none.
  writeFileSync(npmrc, `registry=${url}\n//${listen}/:_authToken=token-of-a-test\n`);
  const env = {
    ...{ npm_config_userconfig: npmrc, npm_config_registry: url, npm_config_cache: path.join(directory, "cache") },
    ...{ npm_config_update_notifier: "false", npm_config_audit: "false", npm_config_fund: "false" },
  };
  const must = async (command, args, cwd) => {
    const result = await run(command, args, { cwd, env: { ...process.env, ...env } });
    if (result.code !== 0)
      throw new Error(`${command} ${args.join(" ")} in ${cwd}: ${result.stderr}\n${server.output()}`);
    return result.stdout;
  };
  return {
    ...{ url, env, output: server.output },
    /** As `npm publish` in that directory. */
    publish: (packageDir) => must("npm", ["publish", "--ignore-scripts"], packageDir),
    /** As the release workflow, what scripts/package.mjs has made; resolves to what that prints. */
    release: (packages) => must(process.execPath, ["scripts/publish.mjs", packages], projectDir),
    stop: () => server.stop("SIGTERM", 5000),
  };
}
