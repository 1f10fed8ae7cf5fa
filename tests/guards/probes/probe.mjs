// A guarded service for the fault tests and the benchmark: see README.md.
import http from "node:http";
import { readFileSync } from "node:fs";
import process from "node:process";
import { Guard, Refusal } from "../../../clients/typescript/packages/guard/dist/index.js";
import { sessiond } from "../../../clients/typescript/packages/guard/dist/express.js";

const { url, urls = url, project, issuer, serverKey, maxStalenessMs, failMode, maxEntries, startupTimeoutMs = 20_000, caFile, certificateFile, keyFile } = JSON.parse(process.env.PROBE);
const read = (file) => file && readFileSync(file);

let ahead = 0;
const clock = { elapsed: () => performance.now(), now: () => Date.now() + ahead };
const begun = performance.now();
const guard = await Guard.connect({
    ...{ url: urls, project, issuer, serverKey, maxStaleness: maxStalenessMs, failMode, maxEntries, clock },
    tls: { ca: read(caFile), cert: read(certificateFile), key: read(keyFile) },
    startupTimeout: startupTimeoutMs,
    log: process.env.PROBE_LOG ? console.error : () => undefined,
});
const readyMs = performance.now() - begun;

const json = (response, value) => response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
const number = (request, name) => Number(new URL(request.url, "http://probe").searchParams.get(name));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const guarded = sessiond(guard);

function isRevoked(token) {
    try {
        guard.verifyNow(token);
        return false;
    } catch (error) {
        return error instanceof Refusal && error.reason === "SESSION_REVOKED";
    }
}

/** Watches a token until it is refused. Returns the time, in nanoseconds of Unix time. */
async function refused(token) {
    const begunAt = performance.now();
    while (performance.now() - begunAt < 30_000) {
        if (isRevoked(token)) return (performance.timeOrigin + performance.now()) * 1e6;
        await sleep(1);
    }
    return undefined;
}

/** The time of one verification of a known token, in nanoseconds: the median of rounds. */
function timed(token) {
    const rounds = [];
    for (let round = 0; round < 50; round += 1) {
        const from = process.hrtime.bigint();
        // Another text each time, as from the network.
        for (let call = 0; call < 2_000; call += 1) guard.verifyNow(Buffer.from(token, "latin1").toString("latin1"));
        rounds.push(Number(process.hrtime.bigint() - from) / 2_000);
    }
    return rounds.sort((one, other) => one - other)[25];
}

const routes = {
    "/stats": (request, response) => {
        const { staleness: stalenessMs, ...stats } = guard.stats();
        if (globalThis.gc) globalThis.gc();
        json(response, { ...stats, stalenessMs, rssBytes: process.memoryUsage.rss(), readyMs });
    },
    "/clock": (request, response) => {
        ahead = number(request, "ahead_ms");
        json(response, { ahead });
    },
    "/block": (request, response) => {
        const until = performance.now() + number(request, "ms");
        while (performance.now() < until);
        json(response, {});
    },
    "/missed": async (request, response) => {
        let body = "";
        for await (const part of request) body += part;
        json(response, { missed: JSON.parse(body).filter((token) => !isRevoked(token)).length });
    },
    "/refused": (request, response) => void refused(request.headers.authorization.slice(7)).then((nanos) => json(response, { nanos })),
    "/time": (request, response) => json(response, { nanos: timed(request.headers.authorization.slice(7)) }),
};

const server = http.createServer((request, response) => {
    const route = routes[request.url.split("?")[0]];
    if (route) return route(request, response);
    return guarded(request, response, () => response.end(request.principal.userId));
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
// The parent closes it.
process.stdin.on("end", () => process.exit()).resume();
