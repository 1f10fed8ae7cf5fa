// An API with Hono: `POST /login`, and routes that need a session.

import { serve } from "@hono/node-server";
import { sessiond } from "@sessiond/server/hono";
import { Hono } from "hono";
import { createSession } from "./login.js";

const { SESSIOND_URL = "", SESSIOND_PROJECT_ID = "", PORT = "3000" } = process.env;

const api = new Hono()
    .use(sessiond({ url: SESSIOND_URL, project: SESSIOND_PROJECT_ID, timeoutMs: 5_000 }))
    .get("/hello", (context) => context.json({ hello: context.get("sessiond")?.userId }));

const app = new Hono()
    .post("/login", async (context) => {
        const { user } = await context.req.json();
        return context.json(await createSession(user, context.req.header("user-agent")));
    })
    .route("/api", api);
serve({ fetch: app.fetch, port: Number(PORT), hostname: "127.0.0.1" });
