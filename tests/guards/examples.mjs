// The example services, under real frameworks: sign-in, 200, sign-out elsewhere, 401 within the bound. With the requirements of
// RFC 9470 on one route.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "../free-port.mjs";
import { ROOT, Sessiond, call, eventually, start } from "./lib.mjs";

const { GUARDS_PYTHON, GUARDS_HELLO } = process.env;

/** How long after the sign-out a service may still accept the token. Usually it is some milliseconds. */
const BOUND_MS = 2_000;

const ofNode = (name) => JSON.parse(readFileSync(join(ROOT, "clients/typescript/node_modules", name, "package.json"), "utf8")).version;
const python = (code) => {
    const child = spawn(GUARDS_PYTHON, ["-c", `import importlib.metadata as m; print(${code})`], { stdio: ["ignore", "pipe", "inherit"] });
    return once(child.stdout, "data").then(([text]) => text.toString().trim());
};
const ofPython = (...names) => python(`' '.join(n + ' ' + m.version(n) for n in ${JSON.stringify(names)})`);

const directory = await mkdtemp(join(process.env.SESSIOND_GUARDS_DIR ?? tmpdir(), "examples-"));
await chmod(directory, 0o711);
const server = await Sessiond.start(join(directory, "sessiond"));
const node = (file) => [process.execPath, join(ROOT, "clients/typescript/packages/guard/examples", file)];
const of = join(ROOT, "clients/python/examples");
const module = (name, ...args) => [GUARDS_PYTHON, "-m", name, ...args];
const SERVICES = [
    [`express ${ofNode("express")}`, () => node("express.mjs")],
    [`fastify ${ofNode("fastify")}`, () => node("fastify.mjs")],
    [`hono ${ofNode("hono")}`, () => node("hono.mjs")],
    [await ofPython("fastapi", "uvicorn"), (port) => module("uvicorn", "--app-dir", of, "--log-level", "warning", "--port", port, "fastapi_app:app")],
    [await ofPython("flask"), (port) => module("flask", "--app", join(of, "flask_app.py"), "run", "--port", port)],
    [`${await ofPython("django")}, WSGI`, (port) => [GUARDS_PYTHON, join(of, "django_app.py"), "runserver", "--noreload", port]],
    [`${await ofPython("django", "uvicorn")}, ASGI`, (port) => module("uvicorn", "--app-dir", of, "--log-level", "warning", "--lifespan", "off", "--port", port, "django_app:asgi")],
    ["net/http of Go", () => [GUARDS_HELLO]],
];

/** The reason in an error response. */
const reason = ({ body }) => body.details?.[0].reason;

async function serve(name, [command, ...args], port) {
    const env = {
        ...process.env,
        ...{ SESSIOND_URL: server.url, SESSIOND_PROJECT_ID: server.project, SESSIOND_VERIFIER_KEY: server.verifierKey },
        ...{ PORT: port, PYTHONPATH: join(ROOT, "clients/python/src"), PYTHONDONTWRITEBYTECODE: "1" },
    };
    const service = start(command, args, { env, stdio: ["ignore", "ignore", process.env.GUARDS_LOG ? "inherit" : "ignore"] });
    const url = `http://127.0.0.1:${port}/`;
    const get = (token) => call(url, { token });
    try {
        await eventually(`${name} listens`, async () => {
            assert.equal(service.exitCode, null, `${name} has ended`);
            return (await get()).status === 401;
        });
        const [phone, laptop] = [await server.signIn("ada"), await server.signIn("ada", { acr: "aal2", auth_time: new Date().toISOString() })];
        const hello = await get(phone.access_token);
        assert.deepEqual([hello.status, /^Hello, ada!/.test(hello.body)], [200, true], `${name}: ${JSON.stringify(hello.body)}`);

        const missing = await get();
        assert.deepEqual([missing.status, reason(missing), missing.headers["www-authenticate"]], [401, "CREDENTIALS_MISSING", "Bearer"], name);
        const broken = await get(`${phone.access_token}A`);
        assert.deepEqual([broken.status, reason(broken), broken.headers["www-authenticate"]], [401, "UNPARSABLE_ACCESS_TOKEN", 'Bearer error="invalid_token"'], name);
        const pay = (token) => call(`${url}pay`, { method: "POST", token });
        assert.equal((await pay(laptop.access_token)).status, 200, name);
        const weak = await pay(phone.access_token);
        assert.deepEqual([weak.status, reason(weak)], [401, "INSUFFICIENT_USER_AUTHENTICATION"], name);
        assert.match(weak.headers["www-authenticate"], /insufficient_user_authentication.*acr_values="aal2", max_age="300"$/);

        await server.signOut(phone.access_token);
        const after = await eventually(`${name} refuses`, async () => (await get(phone.access_token)).status === 401, BOUND_MS);
        const ended = await get(phone.access_token);
        assert.deepEqual([ended.status, reason(ended), ended.headers["cache-control"]], [401, "SESSION_REVOKED", "no-store"], name);
        assert.equal((await get(laptop.access_token)).status, 200, name);
        console.log(`guards, ${name}: signed in, 200, signed out elsewhere, 401 after ${Math.round(after)} ms`);
    } finally {
        service.kill("SIGKILL");
    }
}

for (const [name, command] of SERVICES) {
    const port = String(await freePort());
    await serve(name, command(port), port);
}
await server.stop();
await rm(directory, { recursive: true, maxRetries: 20, retryDelay: 200 });
