#!/usr/bin/env node
// The command line without OpenClaw; js/cli.js has all of it.

import { main } from "../js/cli.js";

// Not process.exit: what was written to a pipe may still be on its way.
process.exitCode = await main(process.argv.slice(2));
