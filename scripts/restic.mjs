// restic, as a peer to measure against. It comes from the system: `apt-get install restic`.

import { run } from "../__test__/support/processes.mjs";

export const resticPath = process.env.RESTIC ?? "restic";

/** What restic says of its version. Without restic, says what to do and ends the process. */
export async function resticVersion() {
  const version = await run(resticPath, ["version"]).catch(() => {
    console.error("restic is missing: install it (apt-get install restic), or name it with RESTIC=/path/to/restic");
    process.exit(1);
  });
  return version.stdout.trim();
}
