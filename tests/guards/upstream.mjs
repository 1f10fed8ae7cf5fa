// How the guards reach the real server: by TLS with an authority of its own, with a client certificate in place of the server key,
// and with the trace of a request.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Guard } from "../../clients/typescript/packages/guard/dist/index.js";
import { freePort } from "../free-port.mjs";
import { GUARDS, Probe, Relay, Sessiond, eventually, start } from "./lib.mjs";

const { SESSIOND_BIN } = process.env;
const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "upstream-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"));
const base = { project: server.project, issuer: server.url, maxStalenessMs: 2_000, failMode: "reject", maxEntries: 1_000 };
const withAll = (options) => Promise.all(Object.keys(GUARDS).map((guard) => Probe.start(guard, { ...base, ...options })));

// The authority, and what it certifies.
const file = (name) => join(directory, name);
const openssl = (...args) => execFileSync("openssl", args, { cwd: directory, stdio: ["ignore", "ignore", "pipe"] });
const newKey = (name) => openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", `${name}.key`);
newKey("ca");
openssl("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=the tests' authority", "-days", "2", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign", "-out", "ca.pem");
async function certify(name, usage, subject) {
    newKey(name);
    openssl("req", "-new", "-key", `${name}.key`, "-subj", `/CN=${name}`, "-out", `${name}.csr`);
    await writeFile(file(`${name}.ext`), `basicConstraints=critical,CA:FALSE\nextendedKeyUsage=${usage}\nsubjectAltName=${subject}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n`);
    openssl("x509", "-req", "-in", `${name}.csr`, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", `${name}.ext`, "-out", `${name}.pem`);
}
await certify("server", "serverAuth", "DNS:localhost");
await certify("shop", "clientAuth", "URI:spiffe://example.org/shop");
await server.command("client-certificate", "add", "spiffe://example.org/shop", "--project", server.project, "--role", "verifier");

// A replica with TLS, on the same database.
const [port, metricsPort] = [await freePort(), await freePort()];
const secure = start(SESSIOND_BIN, [
    ...["serve", "--allow-unsafe-durability", "--listen", `127.0.0.1:${port}`, "--metrics-listen", `127.0.0.1:${metricsPort}`],
    ...["--issuer", server.url, "--sealing-key-file", join(server.directory, "sealing-key"), "--log", "error"],
    ...["--tls-certificate-file", file("server.pem"), "--tls-key-file", file("server.key"), "--tls-client-ca-file", file("ca.pem")],
], { env: { ...process.env, DATABASE_URL: server.env.DATABASE_URL }, stdio: ["ignore", "ignore", "inherit"] });
const isReady = () => {
    execFileSync(SESSIOND_BIN, ["health", "--listen", `127.0.0.1:${port}`, "--tls-certificate-file", file("server.pem")], { stdio: "ignore" });
    return true;
};
await eventually("the replica with TLS is ready", () => secure.exitCode !== null || isReady());
assert.equal(secure.exitCode, null, "the replica with TLS has ended");

const url = `https://localhost:${port}`;
const credentials = [
    ["a server key", { serverKey: server.verifierKey }],
    ["a client certificate", { certificateFile: file("shop.pem"), keyFile: file("shop.key") }],
];
for (const [name, credential] of credentials) {
    const probes = await withAll({ url, caFile: file("ca.pem"), ...credential });
    const phone = await server.signIn();
    await Promise.all(probes.map(async (probe) => {
        assert.equal(await probe.verdict(phone.access_token), "accepted", `${probe.guard}, ${name}`);
    }));
    await server.signOut(phone.access_token);
    await Promise.all(probes.map((probe) => eventually(`${probe.guard} refuses`, async () => (await probe.verdict(phone.access_token)) === "SESSION_REVOKED", 2_000)));
    await Promise.all(probes.map((probe) => probe.stop()));
    console.log(`guards, TLS with an authority of its own, ${name}: all accepted, signed out elsewhere, all refused`);
}

// The system's authorities have not certified it, and its name is not that of the certificate.
const phone = await server.signIn();
for (const [name, options] of [["an unknown authority", { url }], ["another name", { url: url.replace("localhost", "127.0.0.1"), caFile: file("ca.pem") }]]) {
    const probes = await withAll({ ...options, serverKey: server.verifierKey, startupTimeoutMs: 1_000 });
    for (const probe of probes) {
        assert.equal(await probe.verdict(phone.access_token), "VERIFICATION_UNAVAILABLE", `${probe.guard}, ${name}`);
        assert.equal((await probe.stats()).connections, 0, `${probe.guard}, ${name}`);
        await probe.stop();
    }
    console.log(`guards, TLS of ${name}: none connects, and all refuse`);
}
secure.kill("SIGTERM");
await once(secure, "exit");

// In an outage of the feed they ask about each token, and the call is a part of the request's trace.
const relay = await Relay.open(server);
relay.stream = (response) => response.flushHeaders();
const calls = [];
relay.seen = ({ url: path, headers }) => {
    if (path === "/auth/tokens:introspect") calls.push([headers.traceparent, headers.tracestate]);
};
const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const probes = await withAll({ url: relay.url, serverKey: server.verifierKey, failMode: "introspect", startupTimeoutMs: 1_000 });
for (const probe of probes) {
    for (const [headers, expected] of [
        [{ traceparent: parent, tracestate: "vendor=1", baggage: "user=ada" }, [parent, "vendor=1"]],
        [{ traceparent: parent }, [parent, undefined]],
        [{ tracestate: "vendor=1" }, [undefined, undefined]],
        [{ traceparent: parent, tracestate: "x".repeat(513) }, [parent, undefined]],
        [{ traceparent: "x".repeat(513), tracestate: "vendor=1" }, [undefined, undefined]],
        [{}, [undefined, undefined]],
    ]) {
        assert.equal(await probe.verdict(phone.access_token, headers), "accepted", probe.guard);
        assert.deepEqual(calls.pop(), expected, `${probe.guard}: ${JSON.stringify(headers)}`);
    }
}
// What a proxy answers in sessiond's place is no verdict.
for (const page of ["<html>busy</html>", "", "{}", '{"active":', '"active"']) {
    relay.instead = (path) => (path === "/auth/tokens:introspect" ? page : undefined);
    for (const probe of probes) assert.equal(await probe.verdict(phone.access_token), "VERIFICATION_UNAVAILABLE", `${probe.guard}: ${page}`);
}
for (const probe of probes) await probe.stop();
console.log("guards, an outage: a proxy's page in place of an answer is no verdict");
// A response that goes on while a guard is closed is followed by nobody.
const closing = await Guard.connect({ project: server.project, issuer: server.url, url: server.url, serverKey: server.verifierKey });
const { signal } = closing.watch(phone.access_token);
assert.equal(signal.aborted, false);
closing.close();
assert.equal(signal.reason.reason, "VERIFICATION_UNAVAILABLE");
assert.equal(closing.watch(phone.access_token).signal.aborted, true);
console.log("guards, traces: each passes traceparent and tracestate on when it asks about a token, and nothing else");
relay.close();
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
