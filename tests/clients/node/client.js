// gRPC with @grpc/grpc-js and stubs that @grpc/proto-loader makes from our proto, against a running `sessiond dev`;
// ./run starts both. The protos of health and reflection come from gRPC's own packages; nothing is decoded by hand.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import path from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { protoPath as HEALTH } from "grpc-health-check";

const { SESSIOND_URL, SESSIOND_METRICS_URL, SESSIOND_PROJECT_ID, SESSIOND_SERVER_KEY, DATABASE_URL } = process.env;
const { CANCELLED, DEADLINE_EXCEEDED, INVALID_ARGUMENT, NOT_FOUND } = grpc.status;
const { RESOURCE_EXHAUSTED, UNAUTHENTICATED, UNIMPLEMENTED, UNKNOWN } = grpc.status;

/** The bound of every wait, in milliseconds. */
const PATIENCE = 10_000;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

const require = createRequire(import.meta.url);
const REFLECTION = path.join(require.resolve("@grpc/reflection"), "../../proto/grpc/reflection/v1/reflection.proto");
const OPTIONS = { includeDirs: ["proto"], keepCase: true, longs: Number, enums: String, oneofs: true, arrays: true };
const PROTOS = ["sessiond/v1/session_service.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"];
const types = loader.loadSync(PROTOS, OPTIONS);
const { sessiond } = grpc.loadPackageDefinition(types);
const { health } = grpc.loadPackageDefinition(loader.loadSync(HEALTH, OPTIONS)).grpc;
const { reflection } = grpc.loadPackageDefinition(loader.loadSync(REFLECTION, OPTIONS)).grpc;

const open = (Stub) => new Stub(new URL(SESSIOND_URL).host, grpc.credentials.createInsecure());
const stubs = [sessiond.v1.SessionService, health.v1.Health, reflection.v1.ServerReflection].map(open);
const [sessions, healthy, mirror] = stubs;

const report = (what) => console.log(`@grpc/grpc-js ${require("@grpc/grpc-js/package.json").version}: ${what}`);

/** Metadata of these pairs. */
function metadata(pairs) {
    const metadata = new grpc.Metadata();
    for (const [name, value] of Object.entries(pairs)) metadata.set(name, value);
    return metadata;
}
const bearer = (token) => ({ authorization: `Bearer ${token}` });
const service = bearer(SESSIOND_SERVER_KEY);

/** Returns the response of a unary call. Fails with a `ServiceError`; calls `heard` with the headers. */
const call = (method, request, credentials, { stub = sessions, deadline = PATIENCE, heard = () => {} } = {}) =>
    new Promise((resolve, reject) => {
        const options = deadline === null ? {} : { deadline: Date.now() + deadline };
        stub[method](request, metadata(credentials), options, (error, answer) => (error ? reject(error) : resolve(answer)))
            .on("metadata", heard);
    });

const signIn = (user = "ada") => call("CreateSession", { user_id: user, device_name: "phone" }, service);
const isActive = async (token) => (await call("IntrospectToken", { token }, service)).active;

/** The details of an error, by the name of their type. */
function details(error) {
    const [status] = error.metadata.get("grpc-status-details-bin").map(types["google.rpc.Status"].deserialize);
    assert.equal(status.code, error.code);
    return Object.fromEntries(status.details.map(({ type_url, value }) => {
        const name = type_url.replace("type.googleapis.com/", "");
        return [name, types[name].deserialize(value)];
    }));
}

/** Asserts that a call fails with this reason, and returns the error. */
async function refused(request, code, reason) {
    let all;
    await assert.rejects(request, (error) => {
        assert.equal(error.code, code, error);
        all = details(error);
        assert.equal(all["google.rpc.ErrorInfo"].reason, reason);
        assert.equal(all["google.rpc.ErrorInfo"].domain, "sessiond");
        return true;
    });
    return all;
}

/** Waits until the condition holds. */
async function until(what, holds) {
    for (const end = Date.now() + PATIENCE; !(await holds());) {
        assert.ok(Date.now() < end, `timed out waiting for ${what}`);
        await pause(20);
    }
}

/** The reader of each stream: one for its whole life, so that no error between two messages is missed. */
const readers = new WeakMap();

/** Returns the next message of this kind; the stream stays open. */
async function first(stream, matches) {
    if (!readers.has(stream)) readers.set(stream, stream[Symbol.asyncIterator]());
    for (;;) {
        const { value, done } = await readers.get(stream).next();
        assert.ok(!done, "the stream ended");
        if (matches(value)) return value;
    }
}
const watch = (credentials, request = {}) =>
    sessions.WatchRevocations(request, metadata(credentials), { deadline: Date.now() + PATIENCE });

async function subscribers() {
    const page = await (await fetch(SESSIOND_METRICS_URL)).text();
    return Number(page.match(/^sessiond_feed_subscribers (\d+)$/m)[1]);
}

/** Cancels a stream, and checks that it reports it. */
async function cancelled(stream) {
    const status = new Promise((resolve) => stream.on("error", resolve));
    stream.cancel();
    assert.equal((await status).code, CANCELLED);
}

// Sign-in, list, sign-out, and the errors afterwards.
{
    const session = await signIn();
    assert.match(session.session.id, UUID);
    const { user_id, project_id, device_name } = session.session;
    assert.deepEqual([user_id, project_id, device_name], ["ada", SESSIOND_PROJECT_ID, "phone"]);
    report("signed in");

    const { items } = await call("ListSessions", { user_id: "me" }, bearer(session.access_token));
    assert.deepEqual(items.filter((one) => one.is_current_session).map((one) => one.id), [session.session.id]);
    const page = await call("ListSessions", { page_size: 1 }, service);
    assert.deepEqual([page.items.length, page.items[0].id], [1, session.session.id]);
    report("listed sessions, as a user and as a service");

    const { refresh_token } = await call("RefreshSession", {}, { "x-refresh-token": session.refresh_token });
    assert.notEqual(refresh_token, session.refresh_token);
    assert.equal((await call("RefreshSession", { refresh_token: session.refresh_token }, {})).refresh_token, refresh_token);
    report("refreshed, and got the same successor again");

    assert.equal((await call("RevokeCurrent", {}, bearer(session.access_token))).already_revoked, undefined);
    assert.equal((await call("RevokeCurrent", {}, bearer(session.access_token))).already_revoked, true);
    report("signed out");
    for (const token of [session.refresh_token, refresh_token]) {
        const again = call("RefreshSession", { refresh_token: token }, {});
        await refused(again, UNAUTHENTICATED, "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");
    }
    report("no refresh after sign-out");

    await refused(call("GetCurrentSession", {}, bearer(session.access_token)), UNAUTHENTICATED, "SESSION_REVOKED");
    report("UNAUTHENTICATED SESSION_REVOKED was decoded");
}

// Other error details.
{
    const malformed = await refused(call("RevokeSession", { id: "../up" }, service), INVALID_ARGUMENT, "SCHEMA_ERROR");
    const [violation] = malformed["google.rpc.BadRequest"].field_violations;
    assert.deepEqual([violation.field, violation.description], ["id", "must be a session's id"]);
    report(`INVALID_ARGUMENT names the field: ${violation.field} ${violation.description}`);

    const short = (await call("CreateSession", { user_id: "ada", expires_in_millis: 1_000 }, service)).access_token;
    const current = () => call("GetCurrentSession", {}, bearer(short));
    await until("the token to expire", () => current().then(() => false, () => true));
    const expired = await refused(current(), UNAUTHENTICATED, "ACCESS_TOKEN_EXPIRED");
    const { metadata } = expired["google.rpc.ErrorInfo"];
    assert.deepEqual([metadata.project_id, metadata.user_id], [SESSIOND_PROJECT_ID, "ada"]);
    assert.match(metadata.refresh_token_id, UUID);
    assert.ok(Math.abs(Number(metadata.expired_at_millis) - Date.now()) < PATIENCE);
    report("ACCESS_TOKEN_EXPIRED has its metadata");
}

// Metadata: every response has a request id, errors too; oversized metadata is refused.
{
    let headers;
    await call("ListSessions", {}, service, { heard: (metadata) => (headers = metadata) });
    assert.match(headers.get("x-request-id")[0], /^[0-9a-f]{32}$/);
    const nobody = await call("ListSessions", {}, { "x-request-id": "mine" }).catch((error) => error);
    assert.equal(nobody.code, UNAUTHENTICATED);
    assert.match(nobody.metadata.get("x-request-id")[0], /^[0-9a-f]{32}$/);
    report("every answer has a request id");

    const heavy = await call("ListSessions", {}, { ...service, "x-heavy": "a".repeat(40_000) }).catch((error) => error);
    assert.equal(heavy.code, UNKNOWN);
    assert.match(heavy.details, /431/);
    await call("ListSessions", {}, service);
    report("metadata of 40 kB was refused by a 431, and the next call was served");
}

// Unknown methods, and malformed messages.
{
    const same = (bytes) => bytes;
    const raw = (method, text) => new Promise((resolve, reject) => {
        const answered = (error) => (error ? reject(error) : resolve());
        const options = { deadline: Date.now() + PATIENCE };
        sessions.makeUnaryRequest(method, same, same, Buffer.from(text), metadata(service), options, answered);
    });
    for (const method of ["/sessiond.v1.SessionService/Nothing", "/sessiond.v9.SessionService/RevokeCurrent"]) {
        await assert.rejects(raw(method, ""), { code: UNIMPLEMENTED });
    }
    report("unknown methods are UNIMPLEMENTED");
    await refused(raw("/sessiond.v1.SessionService/RevokeSession", '{"id": "text"}'), INVALID_ARGUMENT, "SCHEMA_ERROR");
    report("JSON in place of protobuf is INVALID_ARGUMENT");
}

// Deadlines. A transaction locks the session's row, so that the sign-out waits.
{
    const session = await signIn();
    const holder = spawn("psql", ["--quiet", "--no-psqlrc", DATABASE_URL], { stdio: ["pipe", "pipe", "inherit"] });
    holder.stdin.write(`BEGIN; SELECT 'held' FROM sessions WHERE id = '${session.session.id}' FOR UPDATE;\n`);
    await first(holder.stdout, (text) => String(text).includes("held"));

    // The client's own deadline.
    const unheard = await call("RevokeCurrent", {}, bearer(session.access_token), { deadline: 20 }).catch((error) => error);
    assert.equal(unheard.code, DEADLINE_EXCEEDED);
    report("a deadline of 20 ms passed");

    // The server's deadline: this client has none, and gets the error.
    const told = call("RevokeCurrent", {}, { ...bearer(session.access_token), "grpc-timeout": "50m" }, { deadline: null });
    await refused(told, DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED");
    report("the server enforces grpc-timeout");

    assert.equal(await isActive(session.access_token), true);
    holder.stdin.end("ROLLBACK;\n");
    await until("the sign-out", async () => !(await isActive(session.access_token)));
    report("the call in progress at the deadline was completed");
}

// The feed: the snapshot, live revocations, and no leaked subscribers.
{
    const before = await subscribers();
    const [past, next] = [await signIn("bea"), await signIn("bea")];
    await call("RevokeCurrent", {}, bearer(past.access_token));
    const stream = watch(service);
    const names = ({ session }) => (one) => one.session_id === session.id;
    const tells = (session) => ({ revocations }) => revocations?.revocations.some(names(session));
    assert.equal((await first(stream, () => true)).snapshot_begin.reason, "SNAPSHOT_REASON_NO_CURSOR");
    await first(stream, tells(past));
    const { cursor } = await first(stream, (message) => message.snapshot_complete);
    const begun = performance.now();
    await call("RevokeCurrent", {}, bearer(next.access_token));
    const { revocations } = await first(stream, tells(next));
    const live = revocations.revocations.find(names(next));
    assert.deepEqual([live.reason, live.user_id], ["REVOKE_REASON_SIGNED_OUT", "bea"]);
    report(`the feed sent a sign-out ${(performance.now() - begun).toFixed(1)} ms after the request`);

    await first(stream, (message) => message.heartbeat);
    await until("a subscriber to be counted", async () => (await subscribers()) === before + 1);
    await cancelled(stream);
    await until("the subscriber to be gone", async () => (await subscribers()) === before);
    report("a cancelled stream is CANCELLED at the client, and closed at the server");

    // From the cursor: no snapshot, only later revocations.
    const resumed = watch(service, { cursor });
    const message = await first(resumed, (message) => message.snapshot_begin || tells(next)(message));
    assert.ok(tells(next)(message));
    await cancelled(resumed);
    report("the feed resumed from its cursor");

    // A user's stream ends with the session.
    const tab = await signIn("bea");
    const own = watch(bearer(tab.access_token));
    await first(own, (message) => message.snapshot_complete);
    await call("RevokeCurrent", {}, { "x-refresh-token": tab.refresh_token });
    await refused(first(own, () => false), UNAUTHENTICATED, "SESSION_REVOKED");
    report("a user's feed ended with the session");
}

// Health and reflection.
{
    for (const name of ["", "sessiond.v1.SessionService"]) {
        assert.equal((await call("Check", { service: name }, {}, { stub: healthy })).status, "SERVING");
    }
    await assert.rejects(call("Check", { service: "nothing" }, {}, { stub: healthy }), { code: NOT_FOUND });
    const stream = healthy.Watch({ service: "" }, { deadline: Date.now() + PATIENCE });
    assert.equal((await first(stream, () => true)).status, "SERVING");
    await cancelled(stream);
    report("health was checked and watched");

    const questions = mirror.ServerReflectionInfo({ deadline: Date.now() + PATIENCE });
    const ask = (question) => {
        questions.write(question);
        return first(questions, () => true);
    };
    const { service: services } = (await ask({ list_services: "" })).list_services_response;
    const names = services.map((one) => one.name);
    for (const name of ["sessiond.v1.SessionService", "grpc.health.v1.Health"]) assert.ok(names.includes(name), names);
    // Every file that the service needs, so that a client can be built from reflection alone.
    const files = new Map();
    const keep = async ({ file_descriptor_response }) => {
        for (const bytes of file_descriptor_response.file_descriptor_proto) {
            const file = types["google.protobuf.FileDescriptorProto"].deserialize(bytes);
            files.set(file.name, file);
            for (const name of file.dependency) if (!files.has(name)) await keep(await ask({ file_by_filename: name }));
        }
    };
    await keep(await ask({ file_containing_symbol: "sessiond.v1.SessionService" }));
    questions.end();
    const set = types["google.protobuf.FileDescriptorSet"].serialize({ file: [...files.values()] });
    const reflected = grpc.loadPackageDefinition(loader.loadFileDescriptorSetFromBuffer(set, OPTIONS));
    const stub = open(reflected.sessiond.v1.SessionService);
    stubs.push(stub);
    assert.equal((await call("RevokeCurrent", {}, bearer((await signIn()).access_token), { stub })).success, true);
    report("a stub made by reflection alone signed out");
}

// Last, because it uses up the address's rate limit: ./run sets a hundred a second. Unauthenticated calls have no other
// cost.
{
    const nobody = () => call("GetCurrentSession", {}, {}).catch((error) => error);
    const asked = await Promise.all(Array.from({ length: 600 }, nobody));
    const limited = asked.find(({ code }) => code === RESOURCE_EXHAUSTED);
    const all = await refused(Promise.reject(limited), RESOURCE_EXHAUSTED, "RATE_LIMITED");
    const { seconds = 0, nanos = 0 } = all["google.rpc.RetryInfo"].retry_delay;
    const delay = seconds * 1_000 + nanos / 1e6;
    assert.ok(delay > 0 && delay <= 1_000, `${delay} ms`);
    await until("the bucket to fill", async () => (await nobody()).code === UNAUTHENTICATED);
    report(`RATE_LIMITED says when to retry: in ${delay.toFixed(1)} ms`);
}

for (const stub of stubs) stub.close();
