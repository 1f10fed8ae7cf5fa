// What concerns the whole process, so that no other test may run beside it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryStorage } from "@sessiond/client";
import { createSession, isActive, sleep, stale } from "./host.js";
import { stage } from "./stage.js";

test("a clock that is set back or forward by an hour", async (t) => {
    const { relay, api, open, signedIn } = await stage(t);
    const now = Date.now;
    t.after(() => (Date.now = now));
    for (const hour of [-3_600_000, 3_600_000]) {
        // From the start of the page.
        Date.now = () => now() + hour;
        const storage = memoryStorage();
        const { client } = await signedIn({ storage });
        assert.ok(await isActive(await client.accessToken()));
        await stale();
        assert.equal((await client.fetch(`${api.url}/`)).status, 200);
        const before = relay.refreshes;
        for (let call = 0; call < 5; call += 1) await client.accessToken();
        // One more if this machine was slow.
        assert.ok(relay.refreshes <= before + 1, "no loop");
        // While it is open, and tokens come from the storage.
        Date.now = now;
        const reloaded = open({ storage });
        Date.now = () => now() + hour;
        await stale();
        for (const one of [client, reloaded]) {
            assert.equal((await one.fetch(`${api.url}/`)).status, 200);
            assert.deepEqual([one.state.status, one.outs], ["signed-in", []]);
        }
        Date.now = now;
    }
});

test("listeners that throw do not stop the client", async (t) => {
    const { open } = await stage(t);
    const uncaught = [];
    const mine = process.rawListeners("uncaughtException");
    process.removeAllListeners("uncaughtException");
    process.on("uncaughtException", (error) => uncaught.push(error.message));
    t.after(() => {
        process.removeAllListeners("uncaughtException");
        mine.forEach((listener) => process.on("uncaughtException", listener));
    });
    const client = open();
    await client.ready();
    const stop = client.subscribe(() => {
        throw new Error("the app's own");
    });
    await client.signIn(await createSession());
    await sleep(0);
    stop();
    await client.signOut();
    assert.deepEqual(uncaught, ["the app's own"]);
    assert.deepEqual(client.outs, ["SIGNED_OUT"]);
});

