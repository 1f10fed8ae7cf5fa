// Verifiers that find everything by the issuer alone, against a running `sessiond dev`; ./run starts both. Each must accept our access
// token, and refuse one that was changed. None of them follows revocations: they accept a signed-out token until it expires.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import express from "express";
import { auth } from "express-oauth2-jwt-bearer";
import jwt from "jsonwebtoken";
import jwksRsa from "jwks-rsa";
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_SERVER_KEY, SESSIOND_VERIFIER_KEY } = process.env;
const issuer = `${SESSIOND_URL}/projects/${SESSIOND_PROJECT_ID}`;

const { dependencies } = JSON.parse(readFileSync(new URL("package.json", import.meta.url)));
const report = (name, what) => console.log(`${name} ${dependencies[name]}: ${what}`);

/** Creates a session, which no verifier can. */
async function signIn() {
    const response = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: "ada" }),
    });
    assert.equal(response.status, 200);
    return await response.json();
}

const { access_token: token, refresh_token: refreshToken } = await signIn();
const [header, payload, signature] = token.split(".");
const claims = JSON.parse(Buffer.from(payload, "base64url"));
const changed = [header, Buffer.from(JSON.stringify({ ...claims, sub: "eve" })).toString("base64url"), signature].join(".");

// openid-client: discovers by OpenID Connect, and uses what it finds.
{
    const insecure = { execute: [openid.allowInsecureRequests] };
    const secret = openid.ClientSecretPost(SESSIOND_VERIFIER_KEY);
    const config = await openid.discovery(new URL(issuer), SESSIOND_PROJECT_ID, undefined, secret, insecure);
    const found = config.serverMetadata();
    assert.deepEqual([found.issuer, found.jwks_uri], [issuer, `${issuer}/.well-known/jwks.json`]);
    const introspected = await openid.tokenIntrospection(config, token);
    assert.deepEqual([introspected.active, introspected.sub], [true, "ada"]);
    assert.equal((await openid.tokenIntrospection(config, changed)).active, false);
    report("openid-client", "discovered by the issuer, and introspected");
    // A verifier's key does nothing else.
    await assert.rejects(openid.refreshTokenGrant(config, refreshToken), (error) => error.status === 401);
    report("openid-client", "a verifier may not refresh");
    const publicClient = await openid.discovery(new URL(issuer), SESSIOND_PROJECT_ID, undefined, openid.None(), insecure);
    const refreshed = await openid.refreshTokenGrant(publicClient, refreshToken);
    assert.notEqual(refreshed.access_token, token);
    report("openid-client", "refreshed as a public client");
}

// oauth4webapi: both kinds of discovery, and the profile of RFC 9068.
for (const algorithm of ["oidc", "oauth2"]) {
    const insecure = { [oauth.allowInsecureRequests]: true };
    const url = new URL(issuer);
    const response = await oauth.discoveryRequest(url, { ...insecure, algorithm });
    const server = await oauth.processDiscoveryResponse(url, response);
    const ask = (bearer) => new Request(SESSIOND_URL, { headers: { authorization: `Bearer ${bearer}` } });
    const validate = (bearer) => oauth.validateJwtAccessToken(server, ask(bearer), SESSIOND_PROJECT_ID, insecure);
    assert.equal((await validate(token)).sub, "ada");
    await assert.rejects(validate(changed));
    report("oauth4webapi", `${algorithm}: accepted the token, and refused a changed one`);
}

// jwks-rsa finds the key, and jsonwebtoken verifies. Neither discovers: the JWK Set is at the issuer's well-known path.
{
    const client = jwksRsa({ jwksUri: `${issuer}/.well-known/jwks.json` });
    const key = (head, found) => client.getSigningKey(head.kid, (error, one) => found(error, one?.getPublicKey()));
    const options = { algorithms: ["ES256"], issuer, audience: SESSIOND_PROJECT_ID };
    const verify = (bearer) =>
        new Promise((resolve, reject) => {
            jwt.verify(bearer, key, options, (error, read) => (error ? reject(error) : resolve(read)));
        });
    assert.equal((await verify(token)).sub, "ada");
    await assert.rejects(verify(changed));
    report("jwks-rsa", `accepted the token with jsonwebtoken ${dependencies.jsonwebtoken}, and refused a changed one`);
}

// express-oauth2-jwt-bearer: discovers by the issuer, and checks the profile of RFC 9068 if it is strict.
for (const strict of [false, true]) {
    const app = express();
    app.get("/", auth({ issuerBaseURL: issuer, audience: SESSIOND_PROJECT_ID, strict }), (request, response) => {
        response.send(request.auth.payload.sub);
    });
    app.use((error, request, response, next) => response.status(error.status ?? 500).set(error.headers ?? {}).send(error.code ?? next.name));
    const server = app.listen(0, "127.0.0.1");
    await new Promise((listening) => server.once("listening", listening));
    const get = (bearer) => fetch(`http://127.0.0.1:${server.address().port}/`, { headers: { authorization: `Bearer ${bearer}` } });
    const accepted = await get(token);
    assert.deepEqual([accepted.status, await accepted.text()], [200, "ada"]);
    const refused = await get(changed);
    assert.deepEqual([refused.status, await refused.text()], [401, "invalid_token"]);
    server.close();
    report("express-oauth2-jwt-bearer", `${strict ? "strict" : "default"}: accepted the token, and refused a changed one`);
}
