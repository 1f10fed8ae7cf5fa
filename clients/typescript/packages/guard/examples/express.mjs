// A service behind the guard, with Express: it knows the signed-in user, and refuses a signed-out one at once. With `./run` in
// another shell:
//
//     . .sessiond/dev.env && export SESSIOND_URL SESSIOND_PROJECT_ID SESSIOND_VERIFIER_KEY
//     node clients/typescript/packages/guard/examples/express.mjs
//
//     curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 200: who you are
//     curl -X DELETE $SESSIOND_URL/auth/sessions/current -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"
//     curl -i localhost:8082/ -H "Authorization: Bearer $SESSIOND_ACCESS_TOKEN"      # 401: SESSION_REVOKED

import process from "node:process";
import { Guard } from "@sessiond/guard";
import { sessiond } from "@sessiond/guard/express";
import express from "express";

const { SESSIOND_URL, SESSIOND_PROJECT_ID, SESSIOND_VERIFIER_KEY, SESSIOND_ISSUER = SESSIOND_URL, PORT = "8082" } = process.env;

const guard = await Guard.connect({
    url: SESSIOND_URL.split(","),
    project: SESSIOND_PROJECT_ID,
    issuer: SESSIOND_ISSUER,
    serverKey: SESSIOND_VERIFIER_KEY,
});

const app = express();
// Outside of the guard, for probes.
app.get("/metrics", (request, response) => response.type("text/plain").send(guard.metrics()));
app.use(sessiond(guard));
app.get("/", (request, response) => response.send(`Hello, ${request.principal.userId}!\n`));
app.post("/pay", sessiond(guard, { acr: ["aal2"], maxAge: 300 }), (request, response) => response.send("Paid.\n"));
const server = app.listen(Number(PORT), "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${server.address().port}`));
