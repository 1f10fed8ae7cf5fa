// The page of a running `sessiond dev`, in Chromium; ./run starts both. Prints a line for each check that passes.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { access, constants, readFile, rm } from "node:fs/promises";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { promisify } from "node:util";
import { chromium } from "playwright-core";

const env = process.env;
const { SESSIOND_URL, SESSIOND_SERVER_KEY } = env;
const PAGE = `${SESSIOND_URL}/`;
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PATIENCE_MS = 30_000;

// Bounds for the page. The machine may be busy.
const WEIGHT_BYTES_MAX = 150_000;
const FIRST_BYTE_MS_MAX = 50;
const REFUSED_MS_MAX = 2_000;
const LIST_MS_MAX = 5_000;
const INTERACTION_MS_MAX = 1_500;

const began = Date.now();
const ok = (text) => console.log(`${((Date.now() - began) / 1000).toFixed(0).padStart(4)} s  ${text}`);
const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

async function eventually(what, holds) {
    const until = Date.now() + PATIENCE_MS;
    for (let last; ; ) {
        try {
            if (await holds()) return;
        } catch (error) {
            last = error;
        }
        if (Date.now() > until) assert.fail(`not ${what}, in ${PATIENCE_MS} ms${last ? `: ${last.message}` : ""}`);
        await new Promise((go) => setTimeout(go, 20));
    }
}

// Calls to the server that do not come from the page

async function api(method, route, token, body) {
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    const response = await fetch(SESSIOND_URL + route, { method, headers, body: body && JSON.stringify(body) });
    assert.equal(response.status, 200, `${method} ${route}`);
    return response.json();
}

const endById = (id) => api("DELETE", `/auth/sessions/${id}`, SESSIOND_SERVER_KEY);

/** Revokes every session of the demo user. */
async function endAll() {
    await api("POST", "/auth/sessions:revokeAll", SESSIOND_SERVER_KEY, { user_id: "ada" });
}

const countOf = async (user) =>
    (await api("GET", `/auth/sessions?user_id=${user}&page_size=1000`, SESSIOND_SERVER_KEY)).items.length;

/** A request that no browser would send. */
const raw = (options, body) => new Promise((resolve, reject) => {
    const request = http.request(SESSIOND_URL, options, (response) => {
        response.resume().on("end", () => resolve(response));
    });
    request.on("error", reject).end(body);
});

// The browser

async function installed() {
    for (const name of ["chromium", "chromium-browser", "google-chrome"]) {
        for (const dir of env.PATH.split(path.delimiter)) {
            const found = path.join(dir, name);
            if (await access(found, constants.X_OK).then(() => true, () => false)) return found;
        }
    }
    throw new Error("Chromium is not on the PATH");
}

// Page helpers

/** The browser's own messages about a request of someone signed out. */
const UNAUTHENTICATED = /the server responded with a status of 401/;
const NOTHING = /^(?!)/;
const ANYTHING = /./;
const complaints = [];
const shifts = [];

/** A visitor's page, with helpers for the test. */
class Visit {
    /** Messages that are not `expected` are complaints, for as long as the page is open: one may come after the failure that it is about. */
    static async begin(browser, { device = "desktop", scheme = "light", expected = UNAUTHENTICATED, ...more } = {}) {
        const screens = {
            desktop: { viewport: { width: 1280, height: 1080 } },
            phone: { viewport: { width: 360, height: 780 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
        };
        const context = await browser.newContext({ ...screens[device], colorScheme: scheme, ...more });
        context.setDefaultTimeout(PATIENCE_MS);
        const page = await context.newPage();
        const visit = Object.assign(new Visit(), { context, page });
        page.on("pageerror", (error) => complaints.push(String(error)));
        page.on("console", (message) => {
            const text = message.text();
            if (!["error", "warning"].includes(message.type()) || expected.test(text)) return;
            complaints.push(`${text} (${message.location().url})`);
        });
        await page.addInitScript(() => {
            window.shifts = [];
            const seen = (list) => list.getEntries().forEach((entry) => {
                const moved = entry.sources.map(({ node }) => node?.id || node?.className || node?.nodeName);
                if (!entry.hadRecentInput) window.shifts.push(`${entry.value.toFixed(5)} ${moved}`);
            });
            new PerformanceObserver(seen).observe({ type: "layout-shift", buffered: true });
            window.slowest = 0;
            const felt = (list) => list.getEntries().forEach(({ duration }) => (window.slowest = Math.max(window.slowest, duration)));
            new PerformanceObserver(felt).observe({ type: "event", durationThreshold: 16, buffered: true });
        });
        return visit;
    }

    async open() {
        await this.page.goto(PAGE);
        await this.live();
        return this;
    }

    async end() {
        shifts.push(...(await this.page.evaluate(() => window.shifts)));
        await this.context.close();
    }

    live() {
        return eventually("live", async () => (await this.link()) === "feed live");
    }

    link() {
        return this.page.textContent("#link-state");
    }

    message() {
        return this.page.textContent("#message");
    }

    card(device) {
        return this.page.locator(`[data-device=${device}]`);
    }

    row(name) {
        return this.page.locator(".row", { has: this.page.locator(`.name:text("${name}")`) }).first();
    }

    async verdict(device) {
        return [await this.card(device).locator(".code").textContent(), await this.card(device).locator(".why").textContent()];
    }

    async isIn(device) {
        await eventually(`${device} let in`, async () => (await this.verdict(device)).join() === "200,hello, ada");
    }

    async signIn(...those) {
        for (const device of those) {
            await this.card(device).locator(".act").click();
            await this.isIn(device);
        }
    }

    /** The milliseconds shown on a card whose token was rejected. */
    async refusedAfter(device) {
        await eventually(`${device} turned away`, async () => (await this.verdict(device)).join() === "401,SESSION_REVOKED");
        const took = await this.card(device).locator(".took").textContent();
        assert.match(took, /^[\d.,]+ms$/);
        const after = Number(took.replace(/ms|,/g, ""));
        assert.ok(after < REFUSED_MS_MAX, took);
        return took;
    }

    isOver(name) {
        return eventually(`the row of ${name} ended`, () => this.row(name).evaluate((row) => "ended" in row.dataset));
    }

    async feed() {
        return (await this.page.locator("#feed p").allTextContents()).join("\n");
    }

    wire(name) {
        return this.page.locator(".switch span", { hasText: name }).click();
    }

    /** Asserts that there is no serious accessibility violation. */
    async isAccessible(when) {
        // Elements have less contrast while they fade in.
        await this.page.evaluate(() => Promise.allSettled(document.getAnimations().map(({ finished }) => finished)).then(() => {}));
        await this.page.evaluate(AXE);
        const { violations, passes } = await this.page.evaluate(() => window.axe.run());
        const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
        const minor = violations.map(({ id, impact }) => `${id} (${impact})`).join(", ");
        const findings = grave.map(({ id, help, nodes }) => `${id}: ${help}\n  ${nodes.map(({ html }) => html).join("\n  ")}`);
        assert.deepEqual(findings, [], when);
        ok(`axe, ${when}: ${passes.length} rules passed, no serious violation${minor && `; ${minor}`}`);
    }

    async fits() {
        const [wide, has] = await this.page.evaluate(() => [document.scrollingElement.scrollWidth, innerWidth]);
        assert.ok(wide <= has, `${wide} px wide in ${has}`);
    }
}

// The tests, in the order of a visit

async function loads(browser) {
    const visit = await Visit.begin(browser, { expected: NOTHING });
    const { page } = visit;
    let weight = 0;
    const foreign = [];
    page.on("requestfinished", async (request) => {
        if (new URL(request.url()).origin !== SESSIOND_URL) foreign.push(request.url());
        const { responseHeadersSize, responseBodySize } = await request.sizes();
        weight += responseHeadersSize + responseBodySize;
    });
    await visit.open();
    await eventually("loaded", () => weight > 10_000);
    assert.ok(weight < WEIGHT_BYTES_MAX, `${weight} bytes`);
    assert.deepEqual(foreign.filter((url) => !url.startsWith("data:")), []);
    ok(`weight: ${weight.toLocaleString("en")} bytes on the wire, all of them from here`);

    const answer = await page.reload();
    const policy = answer.headers()["content-security-policy"];
    for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"]) assert.ok(policy.includes(part));
    assert.equal(answer.headers()["x-content-type-options"], "nosniff");
    const firstBytes = [];
    for (let load = 0; load < 9; load += 1) {
        await page.reload();
        const timing = await page.evaluate(() => performance.getEntriesByType("navigation")[0].toJSON());
        firstBytes.push(timing.responseStart - timing.startTime);
    }
    assert.ok(median(firstBytes) < FIRST_BYTE_MS_MAX, String(firstBytes));
    ok(`first byte: ${median(firstBytes).toFixed(1)} ms, the median of ${firstBytes.length} loads`);

    await visit.isIn("terminal");
    assert.equal(await visit.card("terminal").locator(".where").textContent(), "192.0.2.130");
    assert.equal(await visit.row("Terminal").locator("i").textContent(), "current");
    assert.deepEqual(complaints, [], "no complaints after loading");
    ok("the terminal's session is one of the devices, and signed in; the console is empty");
    await visit.end();
}

/** On a phone: targets large enough for a finger, and the outcome of a button beside it, without scrolling. */
async function fitsAHand(browser) {
    const visit = await (await Visit.begin(browser, { device: "phone" })).open();
    const { page } = visit;
    const strong = await page.evaluate(() => [...document.querySelectorAll("button")].filter((button) =>
        button.checkVisibility() && getComputedStyle(button).backgroundColor === getComputedStyle(document.body).color).map(({ id }) => id));
    assert.deepEqual(strong, ["sign-in-all"], "one primary action");
    await page.click("#sign-in-all");
    for (const device of ["phone", "laptop", "television", "terminal"]) await visit.isIn(device);
    const small = await page.evaluate(() => [...document.querySelectorAll("button, .switch span, .use span, a")]
        .filter((target) => target.checkVisibility() && target.getBoundingClientRect().height < 43.9)
        .map((target) => `${target.textContent}: ${target.getBoundingClientRect().height} px`));
    assert.deepEqual(small, []);
    for (const device of ["phone", "television", "laptop"]) {
        const card = visit.card(device);
        await card.locator(".act").click();
        await visit.refusedAfter(device);
        const outcome = card.locator(".outcome");
        await eventually("the message in the card", async () => /answered 200 in .* the service refused it/.test(await outcome.textContent()));
        const [button, message] = [await card.locator(".act").boundingBox(), await outcome.boundingBox()];
        assert.ok(message.y - (button.y + button.height) < 24 && message.y + message.height <= 780, `${device}: ${JSON.stringify([button, message])}`);
        const cut = await outcome.evaluate(({ scrollHeight, clientHeight }) => scrollHeight - clientHeight);
        assert.ok(cut <= 1, `${device}: ${cut} px are cut off`);
    }
    ok("on a phone: one primary action, targets of 44 px, and outcomes are beside their buttons");
    await visit.end();
    await endAll();
}

/** The feed's newest line is the last, and its times never decrease, also with older revocations. */
async function tellsInOrder(browser) {
    const sessions = [];
    for (const name of ["first", "second", "third"]) {
        const { session } = await api("POST", "/auth/sessions", SESSIOND_SERVER_KEY, { user_id: "ada", device_name: name });
        sessions.push(session.id);
    }
    for (const id of sessions) await endById(id);
    const visit = await (await Visit.begin(browser)).open();
    await visit.signIn("phone");
    await visit.card("phone").locator(".act").click();
    await visit.refusedAfter("phone");
    await eventually("in the feed", async () => (await visit.feed()).includes("Phone …"));
    const times = await visit.page.locator("#feed p > :first-child").allTextContents();
    assert.deepEqual(times, times.toSorted(), "times that decrease");
    assert.match((await visit.feed()).split("\n").at(-1), /Phone …/);
    await visit.end();
    ok(`the feed's ${times.length} lines are in the order of their times, the newest last`);
}

async function signsOut(browser) {
    const visit = await (await Visit.begin(browser)).open();
    const { page } = visit;
    assert.match(await page.textContent("#no-sessions"), /Sign in on a device/);
    await visit.isAccessible("before anything is done, light");
    await visit.fits();

    await visit.signIn("phone", "laptop", "tablet");
    for (const [name, ip] of [["Phone", "203.0.113.7"], ["Laptop", "198.51.100.24"], ["Tablet", "203.0.113.88"]]) {
        const row = visit.row(name);
        assert.deepEqual([await row.locator(".ip").textContent(), await row.locator(".used").textContent()], [ip, "today"]);
    }
    assert.equal(await visit.row("Tablet").locator("i").textContent(), "current");
    ok("signed in on three devices: each is accepted, and listed with its address and its last use");

    const claims = await page.textContent("#token");
    for (const claim of [/typat\+jwt/, /algES256/, /subada/, /in (9|10) min \d\d s/]) assert.match(claims, claim);
    const held = await page.evaluate(() => document.body.innerHTML);
    assert.ok(!/eyJ[\w-]+\.[\w-]+\.[\w-]+|sdsk_|sdrt_/.test(held), "a token on the page");
    ok("the access token is decoded, and not shown whole");

    await visit.card("phone").locator(".act").click();
    const overRest = await visit.refusedAfter("phone");
    assert.match(await visit.message(), /DELETE \/auth\/sessions\/current answered 200 in/);
    await visit.isOver("Phone");
    await eventually("in the feed", async () => /Phone …\w{6}SIGNED_OUT/.test(await visit.feed()));
    ok(`signed out over REST: 200, then 401 after ${overRest}; the feed and the list say so`);

    await visit.wire("grpc-web");
    await visit.card("laptop").locator(".act").click();
    const overGrpcWeb = await visit.refusedAfter("laptop");
    assert.match(await visit.message(), /grpc-web RevokeCurrent answered 200 in/);
    await visit.isOver("Laptop");
    await eventually("in the feed", async () => /Laptop …\w{6}SIGNED_OUT/.test(await visit.feed()));
    ok(`signed out over grpc-web: 200, then 401 after ${overGrpcWeb}; the feed and the list say so`);

    await visit.signIn("phone", "television");
    await visit.card("tablet").locator(".use").click();
    await visit.row("Television").locator("button").click();
    const byId = await visit.refusedAfter("television");
    assert.match(await visit.message(), /By Tablet: grpc-web RevokeSession/);
    await visit.wire("REST");
    await visit.row("Phone").locator("button").click();
    const byIdOverRest = await visit.refusedAfter("phone");
    assert.match(await visit.message(), /By Tablet: DELETE \/auth\/sessions\//);
    ok(`signed out by id, from another device: 401 after ${byId} over grpc-web, ${byIdOverRest} over REST`);

    for (const wire of ["REST", "grpc-web"]) {
        await page.click("#sign-in-all");
        for (const device of ["phone", "laptop", "television", "terminal"]) await visit.isIn(device);
        await visit.wire(wire);
        await page.click("#sign-out-others");
        for (const device of ["phone", "laptop", "television", "terminal"]) await visit.refusedAfter(device);
        await visit.isIn("tablet");
        await eventually("the message", async () => /sessions ended, and Tablet stays/.test(await visit.message()));
    }
    await eventually("in the feed", async () => /every session of ada but …\w{6}REVOKED_ALL/.test(await visit.feed()));
    ok("signed out everywhere else, over either wire: four devices rejected, and one stays");

    await page.click("#clear");
    assert.equal(await page.locator(".row[data-ended]").count(), 0);
    assert.equal(await page.locator(".row").count(), 1);
    ok("ended sessions are cleared on request");

    await page.click("#sign-in-all");
    await visit.isIn("terminal");
    const id = await visit.row("Terminal").getAttribute("data-id");
    await endById(id);
    await eventually("turned away", async () => (await visit.verdict("terminal")).join() === "401,SESSION_REVOKED");
    await visit.isOver("Terminal");
    ok("revoked by somebody else: the card and the list follow the feed");

    await visit.isAccessible("after all that, light");
    await visit.fits();
    await visit.end();

    for (const options of [{ scheme: "dark" }, { device: "phone" }, { device: "phone", scheme: "dark" }]) {
        const name = Object.values(options).join(", ");
        const other = await (await Visit.begin(browser, options)).open();
        await other.isAccessible(`before, ${name}`);
        await other.page.click("#sign-in-all");
        for (const device of ["phone", "laptop", "television", "terminal"]) await other.isIn(device);
        await other.card("laptop").locator(".act").click();
        await other.refusedAfter("laptop");
        await other.isAccessible(`after, ${name}`);
        await other.fits();
        await other.end();
    }
}

/** The laptop's tokens in cookies: no script sees them, they outlast a reload, and a sign-out clears them. */
async function keepsCookies(browser) {
    await endAll();
    const visit = await (await Visit.begin(browser)).open();
    const { page, context } = visit;
    await page.locator(".switch span", { hasText: "cookies" }).click();
    for (const wire of ["REST", "grpc-web"]) {
        await visit.wire(wire);
        await visit.signIn("laptop");
        const where = () => visit.card("laptop").locator(".where").textContent();
        assert.equal(await where(), "in cookies");
        const cookies = await context.cookies();
        assert.deepEqual(cookies.map(({ name }) => name).sort(), ["access", "refresh"].map((kind) => `__Host-sessiond.demo.${kind}`));
        for (const { httpOnly, secure, sameSite } of cookies) assert.deepEqual([httpOnly, secure, sameSite], [true, true, "Lax"]);
        await visit.card("laptop").locator(".use").click();
        const panel = await page.textContent("#token");
        for (const shown of ["__Host-sessiond.demo.access", "HttpOnlyyes", "SameSiteLax", 'document.cookie""']) assert.ok(panel.includes(shown), panel);
        const seen = await page.evaluate(() => document.cookie + JSON.stringify(localStorage) + document.body.innerHTML);
        assert.ok(!/eyJ|sdrt_/.test(seen), "a token that script sees");
        await eventually("listed", async () => (await page.locator("sessiond-devices li", { hasText: "Laptop" }).count()) > 0);
        await visit.isAccessible(`in cookie mode, over ${wire}`);
        // Also if it hears of the sign-outs of earlier tests only when it is signed in: it began after them.
        await page.route("**/demo/feed*", async (route) => {
            await visit.isIn("laptop");
            await route.continue().catch(() => {});
        });
        await page.reload();
        await visit.live();
        await page.unroute("**/demo/feed*");
        await visit.isIn("laptop");
        assert.equal(await where(), "in cookies");
        await visit.wire(wire);
        await visit.card("laptop").locator(".act").click();
        await eventually("turned away", async () => (await visit.verdict("laptop")).join() === "401,CREDENTIALS_MISSING");
        assert.deepEqual(await context.cookies(), []);
        await visit.isOver("Laptop");
    }
    // Ended by somebody else, the cookies stay: the next sign-in replaces them.
    await visit.signIn("laptop");
    await endById(await visit.row("Laptop").getAttribute("data-id"));
    await eventually("turned away", async () => (await visit.verdict("laptop")).join() === "401,SESSION_REVOKED");
    await visit.signIn("laptop");
    await endAll();
    await eventually("turned away", async () => (await visit.verdict("laptop"))[0] === "401");
    await visit.end();
    ok("in cookie mode: no script sees a token, a reload stays signed in, and a sign-out clears the cookies, over both protocols");
}

async function saysWhatWentWrong(browser) {
    const visit = await Visit.begin(browser, { expected: /status of 40[01]|ERR_FAILED/ });
    const { page } = visit;
    // Without the feed, the page does not know yet.
    await page.route("**/demo/feed*", (route) => route.abort());
    await page.goto(PAGE);
    await visit.signIn("phone");
    await endById(await visit.row("Phone").getAttribute("data-id"));
    await page.click("#sign-out-others");
    await eventually("the message", async () => (await visit.message()).endsWith("401 · SESSION_REVOKED · The session has ended."));
    await visit.wire("grpc-web");
    await page.click("#sign-out-others");
    const expected = "grpc-status 16 · SESSION_REVOKED · The session has ended.";
    await eventually("the message", async () => (await visit.message()).endsWith(expected));
    await visit.card("phone").locator(".act").click();
    await eventually("the message", async () => /it had ended before/.test(await visit.message()));
    ok("errors are shown as the API reports them, over both protocols; a session that had ended is not an error");
    await visit.end();
}

async function worksByKeyboard(browser) {
    await endAll();
    const visit = await (await Visit.begin(browser, { reducedMotion: "reduce" })).open();
    const { page } = visit;
    const focused = () => page.evaluate(() => {
        const { ariaLabel, textContent, id, value } = document.activeElement;
        return document.activeElement === document.body ? "nothing" : ariaLabel || id || value || textContent;
    });
    const reach = async (label) => {
        for (let steps = 0; steps < 80; steps += 1) {
            if (await focused() === label) {
                const outline = await page.evaluate(() => {
                    const { activeElement: element } = document;
                    const seen = getComputedStyle(element.type === "radio" ? element.nextElementSibling : element);
                    return `${seen.outlineStyle} ${seen.outlineWidth}`;
                });
                assert.equal(outline, "solid 2px", `the focus is seen on ${label}`);
                return;
            }
            await page.keyboard.press("Tab");
        }
        assert.fail(`${label} cannot be reached`);
    };
    await reach("sign-in-all");
    await page.keyboard.press("Enter");
    for (const device of ["phone", "laptop", "tablet"]) await visit.isIn(device);
    await reach("Sign out: Laptop");
    await page.keyboard.press("Space");
    await visit.refusedAfter("laptop");
    assert.equal(await focused(), "Sign in: Laptop", "the focus stays");

    // The current device, by arrow keys; focus moves on when its card loses the choice.
    await page.keyboard.press("Shift+Tab");
    await reach("current device: Phone");
    await page.keyboard.press("ArrowDown");
    assert.equal(await focused(), "current device: Tablet");
    await endById(await visit.row("Tablet").getAttribute("data-id"));
    await eventually("turned away", async () => (await visit.verdict("tablet"))[0] === "401");
    assert.equal(await focused(), "Sign in: Tablet", "the focus goes on");

    await page.evaluate(() => document.querySelector("#sessions-title").focus());
    await reach("Sign out: Terminal, 192.0.2.130");
    await page.keyboard.press("Enter");
    await visit.isOver("Terminal");
    assert.equal(await focused(), "Ended: Terminal, 192.0.2.130", "the focus stays on what has ended");
    await page.keyboard.press("Shift+Tab");
    await page.evaluate(() => document.querySelector("#sessions-title").focus());
    await reach("clear");
    await page.keyboard.press("Enter");
    assert.equal(await focused(), "clear");

    const moving = await page.evaluate(() => document.getAnimations().length);
    assert.equal(moving, 0, "nothing moves with reduced motion");
    ok("by keyboard alone: sign in, sign out, choose, end by id, clear; the focus is visible and never lost");
    await visit.end();
}

async function copiesCommands(browser) {
    const permissions = ["clipboard-read", "clipboard-write"];
    const visit = await (await Visit.begin(browser, { permissions })).open();
    const { page } = visit;
    await visit.signIn("phone", "laptop");
    const commands = page.locator(".commands li");
    let ran = 0;
    for (const command of await commands.all()) {
        const [title, text] = [await command.locator("h3").textContent(), await command.locator("pre").textContent()];
        await command.locator("button").click();
        await eventually("copied", async () => (await page.evaluate(() => navigator.clipboard.readText())) === text);
        // A stream does not end by itself.
        const bounded = text.replaceAll("curl ", `curl --silent --show-error --max-time ${text.includes(" -N ") ? 2 : 20} `);
        const shell = `. "$SESSIOND_DATA_DIR/dev.env"\n${bounded}\n`;
        const output = await new Promise((done) => execFile("sh", ["-c", shell], (_, stdout, stderr) => done(stdout + stderr)));
        const good = /"access_token"|"items"|HTTP\/1.1 200|"snapshot_complete"|"success":true|"revoked_count"|grpc-status:0/;
        assert.match(output, good, `${title}: ${output}`);
        ran += 1;
    }
    assert.equal(ran, 9);
    ok(`${ran} commands were copied, and work in a shell`);
    await visit.end();
}

async function keepsOthersOut(browser) {
    const before = await countOf("ada");
    const json = { "content-type": "application/json" };
    const body = JSON.stringify({ device: "phone" });
    const post = (headers) => raw({ path: "/demo/sign-in", method: "POST", headers: { ...json, ...headers } }, body);
    assert.equal((await post({ origin: "http://evil.example" })).statusCode, 403);
    assert.equal((await post({ origin: "null" })).statusCode, 403);
    assert.equal((await post({ "sec-fetch-site": "same-site" })).statusCode, 403);
    assert.equal((await post({ host: "evil.example" })).statusCode, 421);
    for (const path of ["/demo/feed", "/demo/service"]) {
        assert.equal((await raw({ path, headers: { "sec-fetch-site": "cross-site" } })).statusCode, 403);
    }
    const large = await raw({ path: "/demo/sign-in", method: "POST", headers: json }, `{"device":"${"a".repeat(2_000)}"}`);
    assert.equal(large.statusCode, 413);

    // The same from a browser.
    const other = http.createServer((_, response) => response.writeHead(200, { "content-type": "text/html" }).end("<p>"));
    await new Promise((listening) => other.listen(0, "127.0.0.1", listening));
    const visit = await Visit.begin(browser, { expected: ANYTHING });
    const statuses = [];
    visit.page.on("response", (response) => {
        if (response.url().startsWith(SESSIOND_URL)) statuses.push(response.status());
    });
    for (const host of ["127.0.0.1", "localhost"]) {
        await visit.page.goto(`http://${host}:${other.address().port}/`);
        const outcome = await visit.page.evaluate(async ([url, body]) => {
            const opaque = await fetch(`${url}/demo/sign-in`, { method: "POST", mode: "no-cors", body });
            const open = await fetch(`${url}/demo/sign-in`, { method: "POST", body }).then(() => "read", () => "unread");
            return [opaque.type, open];
        }, [SESSIOND_URL, body]);
        assert.deepEqual(outcome, ["opaque", "unread"]);
        // Nor may it be framed.
        await visit.page.evaluate((url) => {
            document.body.append(Object.assign(document.createElement("iframe"), { src: url }));
        }, PAGE);
        await eventually("no frame", () => visit.page.frames().length > 1 && !visit.page.frames()[1].url().startsWith(SESSIOND_URL));
    }
    assert.deepEqual([...new Set(statuses.filter((status) => status !== 200))], [403], String(statuses));
    await visit.end();
    await new Promise((closed) => other.close(closed));
    assert.equal(await countOf("ada"), before);
    ok("another site's page: may not sign anyone in, read the feed, or frame the page; no session was created");
}

/** Kills the server, and starts it again in the same place. Returns the new process. */
let server;
async function startAgain(...args) {
    server = spawn(env.SESSIOND, ["dev", "--listen", new URL(SESSIOND_URL).host, "--data-dir", env.SESSIOND_DATA_DIR, ...args], {
        stdio: "ignore",
    });
    await eventually("up again", () => access(path.join(env.SESSIOND_DATA_DIR, "dev.env")).then(() => true));
}

async function comesBack(browser) {
    const visit = await (await Visit.begin(browser, { expected: ANYTHING })).open();
    const { page, context } = visit;
    await page.click("#sign-in-all");
    for (const device of ["phone", "laptop", "terminal"]) await visit.isIn(device);
    const snapshots = async () => (await visit.feed()).match(/snapshot begins/g).length;
    const resumed = async (times) => {
        await visit.live();
        await eventually("resumed", async () => (await visit.feed()).match(/resumed where/g)?.length === times);
        assert.equal(await snapshots(), 1, "from the cursor, not from the beginning");
    };

    await context.setOffline(true);
    await eventually("reconnecting", async () => (await visit.link()) === "feed reconnecting");
    await endById(await visit.row("Phone").getAttribute("data-id"));
    await visit.card("laptop").locator(".act").click();
    await eventually("the message", async () => /no answer from the server/.test(await visit.message()));
    await context.setOffline(false);
    await resumed(1);
    await visit.isOver("Phone");
    await eventually("turned away", async () => (await visit.verdict("phone"))[0] === "401");
    await visit.isIn("laptop");
    ok("offline and back: it says so, and resumes with the missed revocations");

    const pid = Number(env.SESSIOND_PID);
    process.kill(pid, "SIGSTOP");
    await eventually("reconnecting", async () => (await visit.link()) === "feed reconnecting");
    process.kill(pid, "SIGCONT");
    await resumed(2);
    ok("a silent server: the connection is dropped, and reopened");

    await rm(path.join(env.SESSIOND_DATA_DIR, "dev.env"));
    process.kill(pid, "SIGKILL");
    await eventually("reconnecting", async () => (await visit.link()) === "feed reconnecting");
    // Its tokens are so short-lived that they are renewed during the test.
    await startAgain("--access-token-ttl", "20s");
    await resumed(3);
    await visit.isIn("laptop");
    ok("a server that was killed and restarted: the feed resumes");

    await visit.signIn("phone");
    const issued = () => page.locator("#token dt:text-is('iat') + dd").textContent();
    const first = await issued();
    await eventually("renewed", async () => (await issued()) !== first);
    await visit.isIn("phone");
    ok("an access token is renewed before it expires");
    await visit.end();
}

async function holdsTenThousand(browser) {
    const COUNT = 10_000;
    const opening = Date.now();
    let left = COUNT - (await countOf("ada"));
    await Promise.all(Array.from({ length: 24 }, async () => {
        while (left-- > 0) {
            const body = { user_id: "ada", device_name: `Device ${left}`, ip: `192.0.2.${left % 256}` };
            await api("POST", "/auth/sessions", SESSIOND_SERVER_KEY, body);
        }
    }));
    ok(`${COUNT.toLocaleString("en")} sessions, created in ${Date.now() - opening} ms`);

    const visit = await (await Visit.begin(browser)).open();
    const { page } = visit;
    /** How long after the click the page shows the result: measured in the page, to the frame. */
    const timed = (selector, isDone) => page.evaluate(([selector, isDone]) => new Promise((done) => {
        const holds = new Function(`return ${isDone}`);
        document.querySelector(selector).addEventListener("click", () => {
            const began = performance.now();
            const look = () => (holds() ? requestAnimationFrame(() => done(performance.now() - began)) : requestAnimationFrame(look));
            look();
        }, { once: true, capture: true });
        window.ready = true;
    }).then((took) => took), [selector, isDone]);
    const click = async (selector, isDone) => {
        const [took] = await Promise.all([timed(selector, isDone), page.waitForFunction("window.ready").then(async () => {
            await page.evaluate("window.ready = false");
            await page.click(selector);
        })]);
        return took;
    };
    const shown = "document.querySelectorAll('.row').length";
    const listed = await click("[data-device=phone] .act", `${shown} >= 50`);
    assert.ok(listed < LIST_MS_MAX, `${listed} ms`);
    const more = [];
    for (let rows = 50; await page.locator("#more").isVisible(); rows = await page.locator(".row").count()) {
        more.push(await click("#more", `${shown} > ${rows} && document.querySelector("#more").ariaBusy === "false"`));
    }
    const all = await page.locator(".row").count();
    assert.ok(all >= COUNT, `${all} rows`);
    assert.ok(Math.max(...more) < LIST_MS_MAX, String(more));
    ok(`a list of ${all.toLocaleString("en")}: the first 50 after ${listed.toFixed(0)} ms; ${more.length} times "Show more", ` +
        `median ${median(more).toFixed(0)} ms, the last ${more.at(-1).toFixed(0)} ms`);

    await page.evaluate("window.slowest = 0");
    const one = await click(".row:nth-child(5) button", "'ended' in document.querySelector('.row:nth-child(5)').dataset");
    const wire = await click("input[value=grpc-web] + span", "document.querySelector('input[value=grpc-web]').checked");
    const scrolled = await page.evaluate(async () => {
        const list = document.querySelector(".sessions .scroll");
        const began = performance.now();
        for (let step = 1; step <= 20; step += 1) {
            list.scrollTop = (list.scrollHeight * step) / 20;
            await new Promise(requestAnimationFrame);
        }
        return (performance.now() - began) / 20;
    });
    const rest = await click("#sign-out-others", `document.querySelectorAll('.row:not([data-ended])').length === 1`);
    const slowest = await page.evaluate("window.slowest");
    for (const took of [one, wire, slowest]) assert.ok(took < INTERACTION_MS_MAX, `${took} ms`);
    ok(`with all of them shown: one signed out in ${one.toFixed(0)} ms, the switch in ${wire.toFixed(0)} ms, a frame of scrolling in ` +
        `${scrolled.toFixed(0)} ms, all but one in ${rest.toFixed(0)} ms; the slowest reaction took ${slowest.toFixed(0)} ms`);
    await visit.end();
}

async function screenshots(browser) {
    for (const [name, options] of [["desktop", {}], ["phone", { device: "phone" }], ["dark", { scheme: "dark" }]]) {
        const visit = await (await Visit.begin(browser, { ...options, reducedMotion: "reduce" })).open();
        await visit.page.click("#sign-in-all");
        for (const device of ["phone", "laptop", "television", "terminal"]) await visit.isIn(device);
        await visit.card("laptop").locator(".act").click();
        await visit.refusedAfter("laptop");
        await visit.wire("grpc-web");
        await visit.card("television").locator(".act").click();
        await visit.refusedAfter("television");
        await eventually("in the feed", async () => (await visit.feed()).includes("Television …"));
        await visit.page.mouse.move(0, 0);
        await visit.page.evaluate(() => scrollTo(0, 0));
        await visit.page.screenshot({ path: `docs/images/page-${name}.png` });
        await visit.end();
        await endAll();
    }
    ok("screenshots: docs/images/page-desktop.png, page-phone.png, page-dark.png");
}

/** The second needs the session in `dev.env`. */
const all = [
    loads, copiesCommands, fitsAHand, tellsInOrder, signsOut, saysWhatWentWrong, worksByKeyboard, keepsCookies, keepsOthersOut, comesBack,
    holdsTenThousand,
];
const named = process.argv.slice(2).filter((name) => name !== "--screenshots");
const tests = named.length ? named.map((name) => all.find((test) => test.name === name) ?? assert.fail(`no test ${name}`)) : all;

const quiet = ["background-networking", "component-update", "sync", "gpu", "quic"].map((what) => `--disable-${what}`);
// In a new temporary directory, deleted on exit.
const browser = await chromium.launch({
    executablePath: await installed(),
    args: [...quiet, "--no-first-run", ...(process.getuid() === 0 ? ["--no-sandbox"] : [])],
});
try {
    if (process.argv.includes("--screenshots")) {
        await screenshots(browser);
        // The first session of `dev` has been revoked; this is another.
        await promisify(execFile)(env.SESSIOND, ["demo-session", "--data-dir", env.SESSIOND_DATA_DIR]);
    }
    for (const test of tests) await test(browser);
    assert.deepEqual(shifts, []);
    ok("no cumulative layout shift, on every screen");
    assert.deepEqual(complaints, []);
    ok("no complaints of the browser: no policy violation, no error");
} finally {
    await browser.close();
    server?.kill();
}
