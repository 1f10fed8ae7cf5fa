// The page: every client, callable from client.js.

import { tokens } from "./app.js";
import { connect } from "./connect.js";
import { google } from "./google.js";
import { now } from "./outcome.js";
import * as recipe from "./recipe.js";
import { rest } from "./rest.js";

const server = new URLSearchParams(location.search).get("server");

const clients = {
    "grpc-web (binary)": google(server, "binary"),
    "grpc-web (text)": google(server, "text"),
    "connect-web": connect(server),
    "fetch (NDJSON)": rest(server, "application/x-ndjson"),
    "fetch (SSE)": rest(server, "text/event-stream"),
    recipe: {
        async signOut(mine) {
            Object.assign(tokens, mine);
            await recipe.signOut();
        },
        async watch(mine) {
            Object.assign(tokens, mine);
            await recipe.untilSignedOut();
        },
    },
};

/** An error, in a form that can leave the page. */
const failure = ({ said, name, code, message }) =>
    said ? { refused: said } : { failed: `${name}${code ? ` ${code}` : ""}: ${message}` };

window.call = (client, method, ...given) =>
    clients[client][method](...given).then((answer) => ({ answer }), failure);

/** The messages of each stream, and its end, with their times. */
window.streams = [];

window.follow = (client, credentials) => {
    const stream = { told: [], end: null };
    const told = (kind, id) => stream.told.push({ kind, id, at: now() });
    const ended = (how) => { stream.end = { ...how, at: now() }; };
    clients[client].watch(credentials, told).then(() => ended({}), (error) => ended(failure(error)));
    return window.streams.push(stream) - 1;
};

/** A raw request that no client would send. */
window.raw = async (path, { body, ...options }) => {
    const response = await fetch(server + path, { ...options, body: body && new Uint8Array(body) });
    const headers = Object.fromEntries(response.headers);
    return { status: response.status, headers, body: [...new Uint8Array(await response.arrayBuffer())] };
};

/** Whether an `EventSource`, which cannot send credentials, is accepted. */
window.eventSource = (path) => new Promise((resolve) => {
    const source = new EventSource(server + path);
    source.onopen = () => { source.close(); resolve(true); };
    source.onerror = () => { source.close(); resolve(false); };
});
