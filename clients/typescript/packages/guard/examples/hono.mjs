// As express.mjs, with Hono.

import process from "node:process";
import { serve } from "@hono/node-server";
import { Guard } from "@sessiond/guard";
import { sessiond } from "@sessiond/guard/hono";
import { Hono } from "hono";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_VERIFIER_KEY, SESSIOND_ISSUER = SESSIOND_URL, PORT = "8082" } = process.env;

const guard = await Guard.connect({
    url: SESSIOND_URL.split(","),
    project: SESSIOND_PROJECT_ID,
    issuer: SESSIOND_ISSUER,
    serverKey: SESSIOND_VERIFIER_KEY,
});

const app = new Hono();
app.use(sessiond(guard));
app.get("/", (context) => context.text(`Hello, ${context.get("principal").userId}!\n`));
app.post("/pay", sessiond(guard, { acr: ["aal2"], maxAge: 300 }), (context) => context.text("Paid.\n"));
serve({ fetch: app.fetch, port: Number(PORT), hostname: "127.0.0.1" }, ({ port }) => console.log(`listening on http://127.0.0.1:${port}`));
