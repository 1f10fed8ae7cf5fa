// Pages rendered by Express, in cookie mode: they load signed in, and their scripts see no token.

import { fileURLToPath } from "node:url";
import { isSameOrigin } from "@sessiond/server";
import { sessiond, sessiondApi } from "@sessiond/server/express";
import express from "express";
import { createSession, endSession } from "./login.js";

const { SESSIOND_URL = "", SESSIOND_PROJECT_ID = "", PORT = "3000" } = process.env;

/** Escapes text for HTML. */
const escaped = (text: string) => text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);

/** A path of this origin, whatever a link to the login page says. */
const returnPath = (path: unknown) => (typeof path === "string" && /^\/(?![/\\])[\w\-./?=&%~+]*$/.test(path) ? path : "/");

const page = (title: string, body: string) => `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>${escaped(title)}</title>
<link rel="icon" href="data:,">
<h1>${escaped(title)}</h1>
${body}`;

const app = express();
app.use(sessiondApi({ url: SESSIOND_URL }));

app.get("/login", (_request, response) => {
    response.send(page("Sign in", `<form method="post"><input name="user" aria-label="user" value="ada" required>
        <label><input type="checkbox" name="persistent"> remember me</label> <button>Sign in</button></form>`));
});
app.post("/login", express.urlencoded(), async (request, response) => {
    // Another site's form would sign the visitor in as somebody else.
    if (!isSameOrigin((name) => request.get(name))) {
        response.status(403).send(page("Not signed in", "<p>The form was not sent by this site.</p>"));
        return;
    }
    const { user, persistent } = request.body;
    const session = await createSession(String(user), request.headers["user-agent"], { persistent: persistent === "on" });
    for (const cookie of session.set_cookies ?? []) response.append("set-cookie", cookie);
    response.redirect(303, returnPath(request.query["return_to"]));
    // When the browser has the new cookies: its other tabs then go on with them, and are not signed out.
    const earlier = request.headers.cookie;
    setTimeout(() => void endSession(earlier).catch(() => console.error("an earlier session goes on until it expires")), 1_000);
});

// The client, as it is published.
app.use("/client", express.static(fileURLToPath(new URL(".", import.meta.resolve("@sessiond/client")))));

const signedIn = sessiond({ url: SESSIOND_URL, project: SESSIOND_PROJECT_ID, cookies: true, login: "/login", timeoutMs: 5_000 });
app.get("/api/hello", signedIn, (request, response) => {
    response.json({ hello: request.sessiond!.userId });
});
app.post("/api/hello", signedIn, (request, response) => {
    response.json({ changed: request.sessiond!.userId });
});
app.get("/{*page}", signedIn, (request, response) => {
    response.send(page(`Hello, ${request.sessiond!.userId}!`, `<p><a href="/next">Next page</a></p>
        <button id="sign-out">Sign out</button>
        <script type="importmap">{"imports": {"@sessiond/client": "/client/index.js"}}</script>
        <script type="module">
            import { Client } from "@sessiond/client";
            const client = (window.client = new Client({ url: "/", cookies: true }));
            client.onSignedOut(() => location.assign("/login"));
            document.getElementById("sign-out").onclick = () => client.signOut();
        </script>`));
});
app.listen(Number(PORT), "localhost");
