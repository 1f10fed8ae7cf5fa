// The MCP server, which is an example of the guard for Node, with the official client: in the directory in MCP_DIRECTORY.

import assert from "node:assert/strict";
import { once } from "node:events";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "../free-port.mjs";
import { Sessiond, call, eventually, start } from "./lib.mjs";

const cwd = process.env.MCP_DIRECTORY;
const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "mcp-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"));
const port = String(await freePort());
const env = { ...process.env, ...server.env, SESSIOND_VERIFIER_KEY: server.verifierKey, PORT: port, MCP_URL: `http://127.0.0.1:${port}/mcp` };
const mcp = start(process.execPath, ["server.mjs"], { cwd, env, stdio: ["ignore", "ignore", process.env.GUARDS_LOG ? "inherit" : "ignore"] });
await eventually("the MCP server listens", () => mcp.exitCode !== null || call(env.MCP_URL).then(({ status }) => status === 401));
const [code] = await once(start(process.execPath, ["test.mjs"], { cwd, env: { ...env, SESSIOND_SERVER_KEY: server.serverKey }, stdio: ["ignore", "inherit", "inherit"] }), "exit");
assert.equal(code, 0);
mcp.kill("SIGKILL");
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
