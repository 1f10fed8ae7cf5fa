// Records what a server of this release sends to followers of revocations, and what it decides on tokens meanwhile, for every later
// guard: `tests/guards/run record` writes clients/vectors/recorded-VERSION.json. The steps are those of clients/vectors/README.md.
// What a guard must decide is what the server decides, but where a comment says otherwise.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { ROOT, Sessiond, call, eventually, sleep } from "./lib.mjs";

const ISSUER = "https://sessions.example.org";
const ACCEPTS = ["session_id", "user_cut_off", "project_cut_off", "signing_key_id", "superseded"];

/** How long the server takes to send what has happened, with plenty to spare. */
const MOMENT_MS = 400;

const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "record-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"), ["--issuer", ISSUER]);
const adminKey = await server.command("server-key", "create", "--project", server.project, "--role", "admin");
const { body: jwks } = await call(`${server.url}/projects/${server.project}/.well-known/jwks.json`);
const [release] = /\d+\.\d+/.exec(execFileSync(process.env.SESSIOND_BIN, ["--version"]).toString());

const begun = performance.now();
const file = { release, project: server.project, issuer: ISSUER, jwks, now_ms: Date.now(), tokens: {}, streams: [] };

/** The server's decision on a token. */
async function verdict(token) {
    const { status, body } = await call(`${server.url}/projects/${server.project}/auth/verify`, { token });
    return status === 200 ? "accepted" : body.details[0].reason;
}

async function signIn(name, user) {
    const created = await server.signIn(user);
    file.tokens[name] = created.access_token;
    return created;
}

class Recording {
    steps = [];
    /** Where the next stream resumes. */
    cursor = "";

    constructor(name) {
        file.streams.push({ name, steps: this.steps });
        this.begun = performance.now();
    }

    step(step) {
        this.steps.push({ at: Math.round(performance.now() - this.begun), ...step });
    }

    /** Opens a stream, and waits until it has a heartbeat. `instead` is sent in place of the cursor. */
    async open({ accepts = ACCEPTS, maxEntries = 1_000, instead = this.cursor } = {}) {
        const query = new URLSearchParams([...(instead ? [["cursor", instead]] : []), ...accepts.map((kind) => ["accepts", kind]), ["max_entries", maxEntries]]);
        this.step({ open: this.cursor });
        const headers = { authorization: `Bearer ${server.verifierKey}`, accept: "application/x-ndjson" };
        this.request = http.get(`${server.url}/auth/revocations:watch?${query}`, { headers, agent: false });
        this.request.on("error", () => undefined);
        const [response] = await once(this.request, "response");
        if (response.statusCode !== 200) {
            let body = "";
            for await (const part of response) body += part;
            return this.step({ answer: response.statusCode, body });
        }
        let hasBeaten = false;
        response.on("error", () => undefined);
        createInterface({ input: response }).on("error", () => undefined).on("line", (line) => {
            if (this.isClosed) return;
            this.step({ line });
            const { cursor, heartbeat } = JSON.parse(line);
            hasBeaten ||= heartbeat !== undefined;
            // A stream cannot be resumed within a snapshot; its end has the first cursor.
            if (cursor !== undefined) this.cursor = cursor;
        });
        this.isClosed = false;
        return eventually("a heartbeat", () => hasBeaten);
    }

    /** Waits until the server has sent what has happened, and decides on these tokens. */
    async decides(expected, own) {
        await sleep(MOMENT_MS);
        for (const [token, reason] of Object.entries(expected)) {
            if (!own) assert.equal(await verdict(file.tokens[token]), reason, token);
            this.step({ token, verdict: reason, ...own });
        }
    }

    close() {
        this.isClosed = true;
        this.request.destroy();
        this.step({ close: true });
    }
}

const patch = async (session) => {
    const path = `/auth/sessions/${session}?supersede_tokens=true&update_mask=claims`;
    const { status } = await call(server.url + path, { method: "PATCH", token: server.serverKey, body: { claims: { role: "admin" } } });
    assert.equal(status, 200);
};
const [accepted, revoked] = ["accepted", "SESSION_REVOKED"];

const phone = await signIn("ada's phone", "ada");
await signIn("ada's laptop", "ada");
const tablet = await signIn("ada's tablet", "ada");
const bob = await signIn("bob", "bob");
const eve = await signIn("eve", "eve");
{
    const recording = new Recording("one of each kind, as it happens");
    await recording.open();
    await recording.decides({ "ada's phone": accepted, "ada's laptop": accepted, "ada's tablet": accepted, bob: accepted, eve: accepted });
    await server.signOut(phone.access_token);
    await recording.decides({ "ada's phone": revoked, "ada's laptop": accepted });
    await patch(eve.session.id);
    const refreshed = await call(`${server.url}/auth/sessions/current/refresh`, { method: "POST", body: { refresh_token: eve.refresh_token } });
    file.tokens["eve, refreshed"] = refreshed.body.access_token;
    await recording.decides({ eve: "ACCESS_TOKEN_SUPERSEDED", "eve, refreshed": accepted });
    await server.post("/auth/sessions:revokeAll", { user_id: "ada", spared_session_id: tablet.session.id });
    await recording.decides({ "ada's laptop": revoked, "ada's tablet": accepted, bob: accepted });
    await signIn("ada, later", "ada");
    await recording.decides({ "ada, later": accepted, "ada's phone": revoked });
    recording.close();
}
{
    const recording = new Recording("resumed, after a sign-out in between");
    await recording.open();
    await recording.decides({ "ada's phone": revoked, "ada's laptop": revoked, "ada's tablet": accepted, "ada, later": accepted, bob: accepted, eve: "ACCESS_TOKEN_SUPERSEDED" });
    recording.close();
    await server.signOut(bob.access_token);
    // The guard does not know it yet.
    await recording.decides({ bob: accepted }, {});
    await recording.open();
    await recording.decides({ bob: revoked, "eve, refreshed": accepted });
    recording.close();
}
{
    const recording = new Recording("another history: sessiond restored");
    await recording.open();
    await recording.decides({ "ada, later": accepted });
    recording.close();
    await server.command("restored");
    await server.stop();
    await server.run();
    await recording.open();
    await signIn("ada, after the restore", "ada");
    await recording.decides({ "ada, later": revoked, "eve, refreshed": revoked, "ada's tablet": revoked, "ada, after the restore": accepted });
    recording.close();
}
{
    const recording = new Recording("the project is signed out, and its key is revoked");
    await recording.open();
    await recording.decides({ "ada, after the restore": accepted });
    await server.post("/auth/sessions:revokeProject", {}, adminKey);
    await signIn("ada, after that", "ada");
    await recording.decides({ "ada, after the restore": revoked, "ada, after that": accepted });
    await server.command("signing-key", "revoke", "--project", server.project, jwks.keys[0].kid);
    // The server itself no longer has the key.
    await recording.decides({ "ada, after that": revoked }, {});
    recording.close();
}
{
    const recording = new Recording("for a follower that understands sessions alone, the rest is withheld");
    await recording.open({ accepts: ["session_id"] });
    // The server itself knows all of it.
    await recording.decides({ "ada's phone": revoked }, {});
    await recording.decides({ "ada, after that": "VERIFICATION_UNAVAILABLE" }, { because: "withheld" });
    recording.close();
}
{
    const recording = new Recording("more entries than the follower holds, and a cursor that is none");
    await recording.open({ maxEntries: 1 });
    await recording.decides({ "ada, after that": "VERIFICATION_UNAVAILABLE" }, { because: "no_feed" });
    await recording.open();
    await recording.decides({ "ada's phone": revoked }, {});
    recording.close();
    await recording.open({ instead: "x" });
    recording.cursor = "";
    await recording.open();
    recording.close();
}

await writeFile(join(ROOT, `clients/vectors/recorded-${release}.json`), `${JSON.stringify(file, null, 2)}\n`);
console.log(`clients/vectors/recorded-${release}.json: ${file.streams.length} streams, ${Object.keys(file.tokens).length} tokens, in ${Math.round((performance.now() - begun) / 1_000)} s`);
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
