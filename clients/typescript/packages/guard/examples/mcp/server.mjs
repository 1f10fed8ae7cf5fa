// An MCP server behind the guard, over Streamable HTTP: its streams stay open for long, and are cut when the user's session ends.
// With `./run` in another shell:
//
//     . .sessiond/dev.env && export SESSIOND_URL SESSIOND_PROJECT_ID SESSIOND_VERIFIER_KEY
//     cd clients/typescript/packages/guard/examples/mcp && npm ci && node server.mjs

import { randomUUID } from "node:crypto";
import process from "node:process";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { Guard, bearer } from "@sessiond/guard";
import { sessiond } from "@sessiond/guard/express";
import express from "express";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_VERIFIER_KEY, SESSIOND_ISSUER = SESSIOND_URL, PORT = "8083" } = process.env;

/** The most MCP sessions at once. */
const SESSIONS_MAX = 1_000;

/** One without a request for this long is closed: not every client says goodbye. */
const IDLE_MS = 30 * 60_000;

const guard = await Guard.connect({
    url: SESSIOND_URL.split(","),
    project: SESSIOND_PROJECT_ID,
    issuer: SESSIOND_ISSUER,
    serverKey: SESSIOND_VERIFIER_KEY,
});

/** The tools of one MCP session. */
function tools(principal) {
    const server = new McpServer({ name: "hello", version: "1.0.0" });
    server.registerTool("whoami", { description: "Says who is signed in." }, () => ({
        content: [{ type: "text", text: principal.userId }],
    }));
    return server;
}

/** MCP sessions, each of one session of a user: another user's token does not reach it. */
const sessions = new Map();

async function sessionOf(request, principal) {
    const known = sessions.get(request.headers["mcp-session-id"]);
    if (known) return known.sessionId === principal.sessionId ? known : undefined;
    if (sessions.size >= SESSIONS_MAX) return undefined;
    const session = { sessionId: principal.sessionId, open: 0, usedAt: Date.now() };
    session.transport = new StreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        onsessioninitialized: (id) => sessions.set(id, session),
    });
    session.transport.onclose = () => sessions.delete(session.transport.sessionId);
    await tools(principal).connect(session.transport);
    return session;
}

setInterval(() => {
    const idle = [...sessions.values()].filter(({ open, usedAt }) => open === 0 && Date.now() - usedAt > IDLE_MS);
    for (const { transport } of idle) void transport.close();
}, 60_000).unref();

const app = express();
app.all("/mcp", sessiond(guard), express.json(), async (request, response) => {
    const session = await sessionOf(request, request.principal);
    if (!session) return response.status(404).json({ jsonrpc: "2.0", error: { code: -32001, message: "Session not found" }, id: null });
    // The client may have gone meanwhile.
    if (response.destroyed) return;
    // The stream ends with the token: at once if the session ends, and when it expires. The client comes back with a fresh one.
    const { signal, stop } = guard.watch(bearer(request.headersDistinct.authorization));
    if (signal.aborted) return response.destroy();
    signal.addEventListener("abort", () => {
        response.destroy();
        if (signal.reason.reason === "SESSION_REVOKED") void session.transport.close();
    });
    session.open += 1;
    response.on("close", () => {
        stop();
        session.open -= 1;
        session.usedAt = Date.now();
    });
    await session.transport.handleRequest(request, response, request.body);
});
const server = app.listen(Number(PORT), "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${server.address().port}/mcp`));
