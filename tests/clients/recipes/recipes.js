// The recipes of docs/guides/clients.md, as printed, against a running `sessiond dev`; ./run starts it. Each is a service, and
// all must behave the same.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { freePort } from "../../free-port.mjs";

const { SESSIOND_URL, SESSIOND_SERVER_KEY, RECIPES, PYTHON } = process.env;

/** The bound of every wait, in milliseconds. */
const PATIENCE = 10_000;

/** The code blocks under a heading of the document. */
function blocks(heading) {
    const [, rest] = readFileSync("docs/guides/clients.md", "utf8").split(`\n## ${heading}\n`);
    assert.ok(rest, `docs/guides/clients.md has a section "${heading}"`);
    const found = [...rest.split("\n## ")[0].matchAll(/^```\w+\n(.*?)^```$/gms)].map(([, code]) => code);
    assert.ok(found.length > 0, `the section "${heading}" has code`);
    return found;
}

/** Writes a recipe to a file. */
function write(heading, name) {
    const [code] = blocks(heading);
    const file = path.join(RECIPES, name);
    writeFileSync(file, code);
    return file;
}

/** Runs a recipe while `work` runs, which gets a function to call it. */
async function running([program, ...args], environment, work) {
    const port = await freePort();
    const env = { ...process.env, ...environment, PORT: String(port) };
    const service = spawn(program, args, { env, stdio: ["ignore", "ignore", "pipe"] });
    const gone = new Promise((exit) => service.on("exit", exit));
    let log = "";
    service.stderr.on("data", (text) => (log += text));
    const ask = (method, path, token) =>
        fetch(`http://127.0.0.1:${port}${path}`, {
            method,
            headers: token ? { authorization: `Bearer ${token}` } : {},
            signal: AbortSignal.timeout(PATIENCE),
        });
    try {
        for (const end = Date.now() + PATIENCE; ; await pause(50)) {
            assert.ok(Date.now() < end && service.exitCode === null, `${program} does not answer`);
            if (await ask("GET", "/").catch(() => null)) break;
        }
        await work(ask);
    } catch (error) {
        console.error(log);
        throw error;
    } finally {
        service.kill();
        await gone;
    }
}

/** A name that a header can carry only encoded. */
const USER = "Ada Lovelace, née Byron";

async function signIn() {
    const response = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: USER }),
    });
    assert.equal(response.status, 200);
    return await response.json();
}

async function exercise(name, command) {
    await running(command, {}, async (ask) => {
        const expect = async (status, method, path, token) => {
            const answer = await ask(method, path, token);
            assert.equal(answer.status, status, `${name}: ${method} ${path}`);
            if (status === 401) assert.equal(answer.headers.get("www-authenticate"), "Bearer");
            return answer;
        };
        const { access_token, refresh_token } = await signIn();
        assert.equal(await (await expect(200, "GET", "/", access_token)).text(), `Hello, ${USER}!\n`);
        const others = [undefined, "rubbish", refresh_token, SESSIOND_SERVER_KEY];
        for (const token of others) await expect(401, "GET", "/", token);
        console.log(`docs/guides/clients.md, ${name}: greeted the user, and rejected everything but an access token`);

        await expect(200, "POST", "/sign-out", access_token);
        await expect(401, "GET", "/", access_token);
        await expect(200, "POST", "/sign-out", access_token);
        console.log(`docs/guides/clients.md, ${name}: signed out, twice, and rejected the token afterwards`);
    });
    const nowhere = { SESSIOND_URL: `http://127.0.0.1:${await freePort()}` };
    await running(command, nowhere, async (ask) => assert.equal((await ask("GET", "/", "any")).status, 503));
    console.log(`docs/guides/clients.md, ${name}: rejected every request while sessiond was down`);
}

mkdirSync(RECIPES, { recursive: true });

// The guard's example has its own tests; here the recipe must equal it.
const example = readFileSync("crates/sessiond-guard/examples/guarded.rs", "utf8");
for (const code of blocks("Rust")) assert.ok(example.includes(code), `crates/sessiond-guard/examples/guarded.rs has:\n${code}`);
console.log("docs/guides/clients.md, Rust: equals crates/sessiond-guard/examples/guarded.rs");

await exercise("Node", [process.execPath, write("Node", "hello.mjs")]);
await exercise("Python", [PYTHON, write("Python", "hello.py")]);

const built = path.join(RECIPES, "hello");
// Nothing may be downloaded: it needs only the standard library.
const env = { ...process.env, GOPROXY: "off", GOTOOLCHAIN: "local" };
execFileSync("go", ["build", "-o", built, write("Go", "hello.go")], { env, stdio: "inherit" });
await exercise("Go", [built]);
