// As express.mjs, with Fastify.

import process from "node:process";
import { Guard } from "@sessiond/guard";
import { requires, sessiond } from "@sessiond/guard/fastify";
import fastify from "fastify";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_VERIFIER_KEY, SESSIOND_ISSUER = SESSIOND_URL, PORT = "8082" } = process.env;

const guard = await Guard.connect({
    url: SESSIOND_URL.split(","),
    project: SESSIOND_PROJECT_ID,
    issuer: SESSIOND_ISSUER,
    serverKey: SESSIOND_VERIFIER_KEY,
});

const app = fastify();
await app.register(sessiond, { guard });
app.get("/", async (request) => `Hello, ${request.principal.userId}!\n`);
app.post("/pay", { onRequest: requires(guard, { acr: ["aal2"], maxAge: 300 }) }, async () => "Paid.\n");
console.log(`listening on ${await app.listen({ port: Number(PORT), host: "127.0.0.1" })}`);
