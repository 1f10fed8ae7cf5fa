// oauth4webapi against a running `sessiond dev`; ./run starts both. The library itself checks every response against
// the RFCs, so these tests mostly check that it accepts them, and that sessions end when they should.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as oauth from "oauth4webapi";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_SERVER_KEY } = process.env;

// Loopback has no TLS.
const insecure = { [oauth.allowInsecureRequests]: true };
const client = { client_id: SESSIOND_PROJECT_ID };

const { oauth4webapi: version } = JSON.parse(readFileSync(new URL("package.json", import.meta.url))).dependencies;
const report = (method, what) => console.log(`oauth4webapi ${version}, ${method}: ${what}`);

/** Creates a session, which no OAuth request can. */
async function signIn() {
    const response = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: "ada" }),
    });
    assert.equal(response.status, 200);
    return await response.json();
}

async function refresh(as, auth, token) {
    const response = await oauth.refreshTokenGrantRequest(as, client, auth, token, insecure);
    assert.match(response.headers.get("cache-control"), /no-store/);
    return await oauth.processRefreshTokenResponse(as, client, response);
}

async function revoke(as, auth, token, hint) {
    const additionalParameters = hint ? { token_type_hint: hint } : {};
    const options = { ...insecure, additionalParameters };
    await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, auth, token, options));
}

async function introspect(as, auth, token) {
    const response = await oauth.introspectionRequest(as, client, auth, token, insecure);
    return await oauth.processIntrospectionResponse(as, client, response);
}

/** The library parses the status, the challenge and the body; this asserts them. */
async function assertRefused(request, status, error, scheme = "basic") {
    await assert.rejects(request, (thrown) => {
        if (status === 401) {
            assert.ok(thrown instanceof oauth.WWWAuthenticateChallengeError, thrown);
            assert.deepEqual(thrown.cause.map((challenge) => challenge.scheme), [scheme]);
        } else {
            assert.ok(thrown instanceof oauth.ResponseBodyError, thrown);
            assert.equal(thrown.error, error);
        }
        assert.equal(thrown.status, status);
        return true;
    });
}

// RFC 8414: discovered from the issuer alone, and the issuer matches.
const issuer = new URL(`${SESSIOND_URL}/projects/${SESSIOND_PROJECT_ID}`);
const discovered = await oauth.discoveryRequest(issuer, { ...insecure, algorithm: "oauth2" });
const as = await oauth.processDiscoveryResponse(issuer, discovered);

const confidential = {
    client_secret_basic: oauth.ClientSecretBasic(SESSIOND_SERVER_KEY),
    client_secret_post: oauth.ClientSecretPost(SESSIOND_SERVER_KEY),
};
const all = { ...confidential, none: oauth.None() };
assert.deepEqual(as.token_endpoint_auth_methods_supported, Object.keys(all));
assert.deepEqual(as.revocation_endpoint_auth_methods_supported, Object.keys(all));
assert.deepEqual(as.introspection_endpoint_auth_methods_supported, Object.keys(confidential));

for (const [method, auth] of Object.entries(all)) {
    // RFC 6749 §6, with a token by RFC 9068, under a key of the document's `jwks_uri`.
    const granted = await refresh(as, auth, (await signIn()).refresh_token);
    const presented = new Request(SESSIOND_URL, { headers: { authorization: `Bearer ${granted.access_token}` } });
    const claims = await oauth.validateJwtAccessToken(as, presented, SESSIOND_PROJECT_ID, insecure);
    assert.equal(claims.sub, "ada");

    // RFC 7009, with either token and any hint; repeats and invalid tokens succeed.
    for (const kind of ["access_token", "refresh_token"]) {
        for (const hint of [undefined, "access_token", "refresh_token", "saml2"]) {
            const session = await signIn();
            await revoke(as, auth, session[kind], hint);
            await assertRefused(refresh(as, auth, session.refresh_token), 400, "invalid_grant");
            await revoke(as, auth, session[kind], hint);
        }
    }
    await revoke(as, auth, "rubbish");
    await assertRefused(revoke(as, auth, SESSIOND_SERVER_KEY), 400, "unsupported_token_type");
    report(method, "refreshed, and verified the new token");
    report(method, "signed out");
    report(method, "no refresh after sign-out");
    report(method, "400 invalid_grant was decoded");
}

for (const [method, auth] of Object.entries(confidential)) {
    // RFC 7662. The library checks `iss`, `aud`, and that times are numbers.
    const session = await signIn();
    const access = await introspect(as, auth, session.access_token);
    assert.deepEqual([access.active, access.sub, access.token_type], [true, "ada", "Bearer"]);
    const refresh = await introspect(as, auth, session.refresh_token);
    assert.deepEqual([refresh.active, refresh.sub, refresh.sid], [true, "ada", access.sid]);
    await revoke(as, auth, session.access_token);
    for (const token of [session.access_token, session.refresh_token, "rubbish"]) {
        assert.deepEqual(await introspect(as, auth, token), { active: false });
    }
    report(method, "introspected");
}
await assertRefused(introspect(as, oauth.None(), (await signIn()).access_token), 401, undefined, "bearer");

// RFC 6749 §5.2: the challenge is for the scheme that was used, so that no browser asks its user for a password.
for (const [wrong, scheme] of [[oauth.ClientSecretBasic("wrong"), "basic"], [oauth.ClientSecretPost("wrong"), "bearer"]]) {
    const session = await signIn();
    await assertRefused(refresh(as, wrong, session.refresh_token), 401, undefined, scheme);
    await assertRefused(revoke(as, wrong, session.refresh_token), 401, undefined, scheme);
    await assertRefused(introspect(as, wrong, session.refresh_token), 401, undefined, scheme);
    await refresh(as, oauth.None(), session.refresh_token);
}
report("a wrong secret", "refused, and revoked nothing");
