// Cookie mode, with tough-cookie as the browser's jar: strict about prefixes, and about who gets which cookie. Against a running
// `sessiond dev`; ./run starts both.

import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { CookieJar, version } from "tough-cookie";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_SERVER_KEY, STRICT_SERVER_KEY, SHARED_SERVER_KEY } = process.env;
const APP = "https://app.example.org/orders";
const NAMES = ["access", "refresh"].map((kind) => `__Host-sessiond.${SESSIOND_PROJECT_ID}.${kind}`);

const report = (what) => console.log(`tough-cookie ${version}: ${what}`);
const newJar = () => new CookieJar(undefined, { prefixSecurity: "strict" });

async function create(cookies, key = SESSIOND_SERVER_KEY) {
    const response = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: "ada", cookies }),
    });
    return { status: response.status, body: await response.json() };
}

// The server applies a change of policy within seconds.
let created;
for (let tries = 0; ; tries++) {
    created = await create({});
    if (created.status === 200) break;
    assert.ok(tries < 100, JSON.stringify(created.body));
    await pause(100);
}

async function signIn(persistent) {
    const jar = newJar();
    const { body } = await create({ persistent });
    for (const value of body.set_cookies) await jar.setCookie(value, APP);
    return jar;
}

/** As the application's own page; a client without Fetch Metadata and `Origin` shows by a header that it is none. */
async function call(jar, method, path) {
    const headers = { cookie: await jar.getCookieString(APP), "x-sessiond-csrf": "1" };
    if (method === "POST") headers["content-type"] = "application/json";
    const response = await fetch(SESSIOND_URL + path, { method, headers, body: method === "POST" ? "{}" : undefined });
    for (const value of response.headers.getSetCookie()) await jar.setCookie(value, APP);
    return response;
}

// What the jar has understood.
for (const persistent of [false, true]) {
    const jar = await signIn(persistent);
    const cookies = await jar.getCookies(APP);
    assert.deepEqual(cookies.map((cookie) => cookie.key).sort(), NAMES);
    for (const cookie of cookies) {
        const { httpOnly, secure, sameSite, hostOnly, path, domain } = cookie;
        const expected = { httpOnly: true, secure: true, sameSite: "lax", hostOnly: true, path: "/", domain: "app.example.org" };
        assert.deepEqual({ httpOnly, secure, sameSite, hostOnly, path, domain }, expected);
        assert.ok(cookie.cookieString().length <= 4096);
        const days = cookie.TTL() / 86_400_000;
        assert.ok(persistent ? days > 1 && days <= 400 : days === Infinity, `${days} days`);
    }
}
report("each cookie is HttpOnly, Secure, Lax and of this host only; it is kept as asked");

// Who gets them.
{
    const jar = await signIn(false);
    const count = async (url, options) => (await jar.getCookies(url, options)).length;
    for (const url of ["http://app.example.org/", "https://example.org/", "https://x.app.example.org/", "https://evil.example/"])
        assert.equal(await count(url), 0, url);
    assert.equal(await count(APP, { http: false }), 0, "script");
    assert.equal(await count(APP, { sameSiteContext: "none" }), 0, "another site's request");
    assert.equal(await count(APP, { sameSiteContext: "lax" }), 2, "another site's link");
    assert.equal(await count("https://app.example.org/anywhere", { sameSiteContext: "strict" }), 2);
    // A sibling subdomain cannot set one: the jar does judge.
    const planted = `${NAMES[0]}=x; Domain=example.org; Path=/; Secure`;
    await jar.setCookie(planted, "https://evil.example.org/", { ignoreError: true });
    assert.equal((await jar.getCookies(APP)).length, 2);
    report("neither script, nor another host, nor another site's request gets them");
}

// The other settings: `SameSite=Strict`, and a domain with its subdomains.
{
    const jarOf = async (key, url) => {
        const jar = newJar();
        for (const value of (await create({}, key)).body.set_cookies) await jar.setCookie(value, url);
        return jar;
    };
    const strict = await jarOf(STRICT_SERVER_KEY, APP);
    const got = async (jar, url, options) => (await jar.getCookies(url, options)).map(({ key }) => key).sort();
    const named = (prefix, project) => ["access", "refresh"].map((kind) => `${prefix}sessiond.${project}.${kind}`);
    assert.deepEqual(await got(strict, APP, { sameSiteContext: "lax" }), [], "another site's link");
    assert.deepEqual(await got(strict, APP, { sameSiteContext: "strict" }), named("__Host-", "strict"));
    const shared = await jarOf(SHARED_SERVER_KEY, APP);
    for (const url of [APP, "https://example.org/", "https://other.example.org/"]) assert.deepEqual(await got(shared, url), named("__Secure-", "shared"), url);
    for (const url of ["http://app.example.org/", "https://example.com/", "https://badexample.org/"]) assert.deepEqual(await got(shared, url), [], url);
    // A server that is not of the domain cannot set them.
    assert.deepEqual(await got(await jarOf(SHARED_SERVER_KEY, "https://app.example.com/").catch(() => newJar()), "https://example.org/"), []);
    report("strict cookies come with no link of another site; those of a domain, with its subdomains only");
}

// Refresh, list, sign out.
{
    const jar = await signIn(true);
    const before = await jar.getCookieString(APP);
    const refreshed = await call(jar, "POST", "/auth/sessions/current/refresh");
    assert.equal(refreshed.status, 200);
    const { access_token, refresh_token, expires_in } = await refreshed.json();
    assert.deepEqual([access_token, refresh_token], ["", ""]);
    assert.ok(expires_in > 0);
    assert.notEqual(await jar.getCookieString(APP), before);
    for (const cookie of await jar.getCookies(APP)) assert.ok(cookie.isPersistent());
    assert.equal((await call(jar, "GET", "/auth/sessions")).status, 200);
    const copy = await jar.getCookieString(APP);
    assert.equal((await call(jar, "DELETE", "/auth/sessions/current")).status, 200);
    assert.equal(await jar.getCookieString(APP), "", "cleared");
    assert.equal((await call(jar, "GET", "/auth/sessions")).status, 401);
    const again = await fetch(`${SESSIOND_URL}/auth/sessions/current`, {
        method: "DELETE",
        headers: { cookie: copy, "x-sessiond-csrf": "1" },
    });
    assert.deepEqual(await again.json(), { success: true, already_revoked: true });
    report("a refresh replaces them, and a sign-out clears them");
}
