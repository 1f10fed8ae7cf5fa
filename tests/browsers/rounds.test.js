// Three tabs at the expiry of the access token: ten parallel requests in each of two, and in the third a page that the server renders,
// with ten parts. Nobody is signed out, and it is one rotation. `ROUNDS=1000 tests/browsers/run rounds` takes half an hour.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Entrance, PROJECTS, close, cookieNames, endAll, greets, jar, newContext, newUser, openBrowser, rotationsMax, signIn, sleep, startApp, startProxy } from "./stage.js";

const PROJECT = "rounds";
const [, REFRESH] = cookieNames(PROJECT);
const { ttl: TTL_MS } = PROJECTS[PROJECT];

const ROUNDS = Number(process.env.ROUNDS ?? 3);
/** Browser profiles at the same time, each with a share of the rounds: most of a round is waiting. */
const PROFILES = ROUNDS > 20 ? 4 : 1;
const PARTS = 10;

let browser, proxy;
const took = [];
before(async () => {
    browser = await openBrowser();
    proxy = await startProxy("nginx", PROJECT, await startApp("express", PROJECT));
});
after(async () => {
    await close(browser);
    await endAll();
    took.sort((one, other) => one - other);
    console.log(`# ${took.length} rounds of ${3 * PARTS + 1} requests at the expiry, one rotation each; a round takes ${Math.round(took[took.length >> 1])} ms, at most ${Math.round(took.at(-1))} ms`);
});

describe("three tabs at the expiry", { concurrency: true }, () => {
    for (let profile = 0; profile < PROFILES; profile += 1) {
        test(`profile ${profile + 1}`, async (t) => {
            const entrance = await Entrance.open(() => proxy);
            const origin = `http://localhost:${entrance.port}`;
            const context = await newContext(t, browser);
            const user = newUser();
            const tabs = [await context.newPage(), await context.newPage(), await context.newPage()];
            await tabs[0].goto(origin);
            await signIn(tabs[0], user);
            for (const tab of tabs) await tab.goto(`${origin}/?parts=${PARTS}`);
            const problems = [];
            context.on("requestfailed", (request) => problems.push(`${request.url()}: ${request.failure().errorText}`));

            const parallel = (tab) => tab.evaluate((parts) => Promise.all(Array.from({ length: parts }, async (_, n) => {
                const response = await fetch(`/orders?n=${n}`);
                return [response.status, /Hello, (.*)!/.exec(await response.text())?.[1]];
            })), PARTS);
            const render = async (tab) => {
                await tab.reload();
                await greets(tab, user);
                await tab.waitForFunction((parts) => document.images.length === parts && [...document.images].every(({ complete, naturalWidth }) => complete && naturalWidth), PARTS);
            };
            for (let round = 1; round <= Math.ceil(ROUNDS / PROFILES); round += 1) {
                await sleep(TTL_MS + 50);
                const before = (await jar(context))[REFRESH].value;
                entrance.seen = [];
                const began = performance.now();
                const [first, second] = await Promise.all([parallel(tabs[0]), parallel(tabs[1]), render(tabs[2])]);
                const ms = performance.now() - began;
                took.push(ms);
                assert.deepEqual([...first, ...second], Array(2 * PARTS).fill([200, user]), `round ${round}`);
                assert.deepEqual(entrance.seen.filter(({ status }) => ![200, 304].includes(status)).map(({ url, status }) => [url, status]), [], `round ${round}`);
                const tokens = entrance.set(REFRESH);
                assert.ok(tokens.size >= 1 && tokens.size <= rotationsMax(ms, TTL_MS), `round ${round}: ${tokens.size} rotations in ${Math.round(ms)} ms`);
                assert.ok(!tokens.has(before));
            }
            assert.deepEqual(problems, []);
        });
    }
});
