// An API with Express: `POST /login`, and routes that need a session.

import { sessiond } from "@sessiond/server/express";
import express from "express";
import { createSession } from "./login.js";

const { SESSIOND_URL = "", SESSIOND_PROJECT_ID = "", PORT = "3000" } = process.env;

const app = express();
app.post("/login", express.json(), async (request, response) => {
    response.json(await createSession(String(request.body.user), request.headers["user-agent"]));
});
app.use("/api", sessiond({ url: SESSIOND_URL, project: SESSIOND_PROJECT_ID, timeoutMs: 5_000 }));
app.get("/api/hello", (request, response) => {
    response.json({ hello: request.sessiond?.userId });
});
app.listen(Number(PORT), "127.0.0.1");
