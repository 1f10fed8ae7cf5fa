// The official client opens a session and its stream, calls a tool, and is cut off when the user signs out elsewhere.

import assert from "node:assert/strict";
import process from "node:process";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { MCP_URL, SESSIOND_URL, SESSIOND_SERVER_KEY } = process.env;
const authorization = (token) => ({ authorization: `Bearer ${token}` });

async function api(method, path, token, body) {
    const headers = { ...authorization(token), "content-type": "application/json" };
    const response = await fetch(SESSIOND_URL + path, { method, headers, body: body && JSON.stringify(body) });
    assert.equal(response.status, 200);
    return response.json();
}

async function connect(token) {
    const client = new Client({ name: "test", version: "1.0.0" });
    const transport = new StreamableHTTPClientTransport(new URL(MCP_URL), { requestInit: { headers: authorization(token) } });
    await client.connect(transport);
    return { client, transport };
}

/** A long-lived stream, as the client opens it. Resolves with the time at which it ends. */
async function stream(token, session) {
    const headers = { ...authorization(token), accept: "text/event-stream", "mcp-session-id": session };
    const response = await fetch(MCP_URL, { headers });
    assert.equal(response.status, 200);
    const ended = (async () => {
        try {
            for await (const part of response.body) assert.ok(part);
        } catch {
            // Cut off.
        }
        return performance.now();
    })();
    return { ended };
}

const [phone, laptop] = [await api("POST", "/auth/sessions", SESSIOND_SERVER_KEY, { user_id: "ada" }), await api("POST", "/auth/sessions", SESSIOND_SERVER_KEY, { user_id: "bob" })];
const one = await connect(phone.access_token);
const two = await connect(laptop.access_token);
assert.equal((await one.client.callTool({ name: "whoami" })).content[0].text, "ada");
assert.equal((await two.client.callTool({ name: "whoami" })).content[0].text, "bob");

// Another user's token does not reach the session.
const stolen = await fetch(MCP_URL, { headers: { ...authorization(laptop.access_token), accept: "text/event-stream", "mcp-session-id": one.transport.sessionId } });
assert.equal(stolen.status, 404);

// The client has its own stream open already, so the test opens one in a session of its own.
const begin = { jsonrpc: "2.0", id: 1, method: "initialize", params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "raw", version: "1" } } };
async function raw(token) {
    const headers = { ...authorization(token), accept: "application/json, text/event-stream", "content-type": "application/json" };
    const response = await fetch(MCP_URL, { method: "POST", headers, body: JSON.stringify(begin) });
    assert.equal(response.status, 200);
    await response.text();
    return stream(token, response.headers.get("mcp-session-id"));
}
const [ada, bob] = [await raw(phone.access_token), await raw(laptop.access_token)];

await api("DELETE", "/auth/sessions/current", phone.access_token);
const signedOutAt = performance.now();
const cutAfter = (await ada.ended) - signedOutAt;
assert.ok(cutAfter < 2_000, `${cutAfter} ms`);
await assert.rejects(one.client.callTool({ name: "whoami" }));
const isOpen = await Promise.race([bob.ended.then(() => false), new Promise((resolve) => setTimeout(() => resolve(true), 500))]);
assert.ok(isOpen, "the other user's stream goes on");
assert.equal((await two.client.callTool({ name: "whoami" })).content[0].text, "bob");
console.log(`guards, MCP: the stream is cut ${Math.round(cutAfter)} ms after the sign-out; another user's goes on`);
process.exit();
