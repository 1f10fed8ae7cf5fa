// Envoy in front of nothing, with its own filter for JWTs, and with the sidecar; ./run starts them. Both accept our access token and
// refuse one that was changed; only the sidecar knows of a sign-out.

import assert from "node:assert/strict";

const { SESSIOND_URL, SESSIOND_ACCESS_TOKEN, JWT_PORT, EXT_PORT } = process.env;
const authorization = (token) => ({ headers: { authorization: `Bearer ${token}` } });
const status = async (port, token) => (await fetch(`http://127.0.0.1:${port}/`, authorization(token))).status;

/** Waits until Envoy listens, or the condition holds. */
async function eventually(condition) {
    for (let tries = 0; tries < 200; tries++) {
        if (await condition().catch(() => false)) return;
        await new Promise((next) => setTimeout(next, 50));
    }
    assert.fail("not within 10 s");
}

for (const [name, port] of [["jwt_authn", JWT_PORT], ["ext_authz with sessiond guard", EXT_PORT]]) {
    await eventually(async () => (await status(port, SESSIOND_ACCESS_TOKEN)) === 200);
    assert.equal(await status(port, `x${SESSIOND_ACCESS_TOKEN}`), 401);
    console.log(`Envoy, ${name}: accepted the token, and refused a changed one`);
}

const signOut = await fetch(`${SESSIOND_URL}/auth/sessions/current`, { method: "DELETE", ...authorization(SESSIOND_ACCESS_TOKEN) });
assert.equal(signOut.status, 200);
const began = performance.now();
await eventually(async () => (await status(EXT_PORT, SESSIOND_ACCESS_TOKEN)) === 401);
console.log(`Envoy, ext_authz with sessiond guard: refused ${Math.round(performance.now() - began)} ms after the sign-out`);
assert.equal(await status(JWT_PORT, SESSIOND_ACCESS_TOKEN), 200);
console.log("Envoy, jwt_authn: accepts it until it expires");
