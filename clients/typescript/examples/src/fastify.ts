// An API with Fastify: `POST /login`, and routes that need a session.

import { sessiond } from "@sessiond/server/fastify";
import Fastify from "fastify";
import { createSession } from "./login.js";

const { SESSIOND_URL = "", SESSIOND_PROJECT_ID = "", PORT = "3000" } = process.env;

const app = Fastify();
app.post<{ Body: { user: string } }>("/login", (request) => createSession(request.body.user, request.headers["user-agent"]));
await app.register(async (api) => {
    await api.register(sessiond, { url: SESSIOND_URL, project: SESSIOND_PROJECT_ID, timeoutMs: 5_000 });
    api.get("/hello", async (request) => ({ hello: request.sessiond?.userId }));
}, { prefix: "/api" });
await app.listen({ port: Number(PORT), host: "127.0.0.1" });
