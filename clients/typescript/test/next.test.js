// The example with Next.js, in cookie mode, in Chromium. ../check has built it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { freePort } from "../../../tests/free-port.mjs";
import { COOKIE_PROJECT, COOKIE_SERVER_KEY, PATIENCE_MS, SESSIOND_URL, api, eventually, expiry, newUser } from "./host.js";
import { openBrowser } from "./tab.js";

const APP = new URL("../examples/next/", import.meta.url).pathname;

test("Next.js: the proxy leads to the login page, renews the cookies of pages, and a page signs out", async (t) => {
    const port = await freePort();
    const env = { ...process.env, SESSIOND_URL, SESSIOND_PROJECT_ID: COOKIE_PROJECT, SESSIOND_SERVER_KEY: COOKIE_SERVER_KEY, NEXT_TELEMETRY_DISABLED: "1" };
    const args = [`${APP}node_modules/next/dist/bin/next`, "start", "--port", String(port), "--hostname", "localhost"];
    const server = spawn(process.execPath, args, { cwd: APP, env, stdio: ["ignore", "ignore", "inherit"] });
    const browser = await openBrowser();
    t.after(async () => {
        await browser.close();
        server.kill();
        await once(server, "exit");
    });
    const origin = `http://localhost:${port}`;
    await eventually("it listens", () => fetch(`${origin}/login`).then(() => true, () => false));
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    const problems = [];
    page.on("pageerror", (error) => problems.push(error.message));

    const foreign = await fetch(`${origin}/login`, { method: "POST", body: new URLSearchParams({ user: "eve" }), headers: { origin: "https://evil.example" } });
    assert.deepEqual([foreign.status, foreign.headers.getSetCookie()], [403, []]);
    await page.goto(`${origin}/`);
    assert.equal(page.url(), `${origin}/login?return_to=%2F`);
    const user = newUser();
    await page.getByLabel("user").fill(user);
    await page.getByRole("button", { name: "Sign in" }).click();
    const greeting = page.getByRole("heading", { name: `Hello, ${user}!` });
    await greeting.waitFor();
    await page.getByText("signed-in").waitFor();
    const token = async () => (await page.context().cookies()).find(({ name }) => name.endsWith(".refresh")).value;
    const before = await token();
    await page.goto("about:blank");
    await expiry();
    await page.goto(`${origin}/`);
    await greeting.waitFor();
    assert.notEqual(await token(), before);
    assert.deepEqual(await page.evaluate(async () => (await fetch("/api/hello")).json()), { hello: user });
    await page.getByRole("listitem").waitFor();
    await page.locator("#sign-out").click();
    await page.waitForURL(`${origin}/login`);
    await eventually("the end", async () => (await api("GET", `/auth/sessions?user_id=${user}`, COOKIE_SERVER_KEY)).items.length === 0);
    await page.goto(`${origin}/`);
    assert.match(page.url(), /\/login\?return_to=/);
    assert.deepEqual(problems, []);
});
