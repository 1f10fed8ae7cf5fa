// An application with Express whose pages know nothing of sessions: they show the user that the proxy names. Only the login page
// talks to sessiond.

import express from "express";

const { SESSIOND_URL, SESSIOND_SERVER_KEY, PORT } = process.env;

const escaped = (text) => text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
const page = (body) => `<!doctype html><meta charset="utf-8"><title>Express</title><link rel="icon" href="data:,">${body}`;

const app = express();

app.get("/login", (request, response) => {
    response.send(page('<form method="post"><input name="user" aria-label="user"> <input name="persistent" type="checkbox" aria-label="remember me"> <button>Sign in</button></form>'));
});

app.post("/login", express.urlencoded(), async (request, response) => {
    // Another site's form would sign the visitor in as somebody else. Every browser of these tests sends this header.
    if (request.get("sec-fetch-site") !== "same-origin") return response.status(403).send(page("<h1>Not this site's form</h1>"));
    const { user, persistent } = request.body;
    const created = await fetch(`${SESSIOND_URL}/auth/sessions`, {
        method: "POST",
        headers: { authorization: `Bearer ${SESSIOND_SERVER_KEY}`, "content-type": "application/json" },
        body: JSON.stringify({ user_id: user, user_agent: request.headers["user-agent"], cookies: { persistent: persistent === "on" } }),
    });
    for (const cookie of (await created.json()).set_cookies) response.append("set-cookie", cookie);
    const path = String(request.query.return_to ?? "/");
    response.redirect(303, /^\/(?![/\\])[\w\-./?=&%~+]*$/.test(path) ? path : "/");
});

// A picture of one pixel, for signed-in users.
const PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>';
app.get("/part/{*name}", (request, response) => {
    response.type("image/svg+xml").set("cache-control", "no-store").send(PICTURE);
});

app.all("/{*page}", (request, response) => {
    const user = decodeURIComponent(request.get("x-user-id") ?? "");
    const parts = Array.from({ length: Number(request.query.parts ?? 0) }, (_, n) => `<img src="/part/${n}" alt="">`);
    response.send(page(`<h1>Hello, ${escaped(user)}!</h1><a href="/next">Next page</a>${parts.join("")}`));
});

app.listen(Number(PORT), "127.0.0.1");
