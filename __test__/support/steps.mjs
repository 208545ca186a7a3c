// Tests whose steps build on one another, and who puts away at the end what they have started.

/**
 * `step(name, body)` is a subtest; after the first that fails the rest is skipped. `keep(thing)` gives the thing back and stops
 * it at the end of the test, wherever that fails: by its `stop()`, or its `close()`.
 * @param {import("node:test").TestContext} t
 */
export function steps(t) {
  const kept = [];
  t.after(async () => {
    for (const thing of kept.reverse()) await (thing.stop ? thing.stop() : thing.close());
  });
  let failed = false;
  return {
    step: (name, body) =>
      t.test(name, { skip: failed && "an earlier step failed" }, async (subtest) => {
        try {
          await body(subtest);
        } catch (error) {
          failed = true;
          throw error;
        }
      }),
    keep(thing) {
      kept.push(thing);
      return thing;
    },
  };
}
