// Plain `fetch`, with streams as JSON lines or as server-sent events.

import { Refusal } from "./outcome.js";

const INFO = "type.googleapis.com/google.rpc.ErrorInfo";
const BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest";
const KINDS = { snapshot_begin: "begin", snapshot_complete: "complete", heartbeat: "heartbeat" };

function refusal({ code, details }) {
    const one = (type) => details.find((detail) => detail["@type"] === type);
    const { reason, domain } = one(INFO);
    return new Refusal({ code, reason, domain, fields: one(BAD_REQUEST)?.field_violations.map(({ field }) => field) });
}

/** The pieces of a stream as they arrive, split at `mark`. */
async function* pieces(body, mark) {
    let rest = "";
    for await (const text of body.pipeThrough(new TextDecoderStream())) {
        const whole = (rest + text).split(mark);
        rest = whole.pop();
        yield* whole;
    }
}

/** A server-sent event: its `event:` and `data:`. */
function event(text) {
    const fields = Object.fromEntries(text.split("\n").map((line) => line.split(/: (.*)/s)));
    const data = JSON.parse(fields.data);
    return fields.event === "error" ? { error: data } : data;
}

const FORMATS = {
    "application/x-ndjson": (body) => pieces(body, "\n"),
    "text/event-stream": (body) => pieces(body, "\n\n"),
};

export function rest(server, accept) {
    const call = async (path, options) => {
        const response = await fetch(server + path, options);
        const body = await response.json();
        if (!response.ok) throw refusal(body);
        return body;
    };
    return {
        async signOut(headers) {
            const { success, already_revoked } = await call("/auth/sessions/current", { method: "DELETE", headers });
            return { success, again: already_revoked ?? false };
        },

        refresh: (token) => call("/auth/sessions/current/refresh", {
            method: "POST",
            headers: { "content-type": "application/json" },
            body: JSON.stringify({ refresh_token: token }),
        }),

        async list(headers, pageSize) {
            return (await call(`/auth/sessions?page_size=${pageSize}`, { headers })).items.map(({ id }) => id);
        },

        async watch(headers, tell) {
            const response = await fetch(`${server}/auth/revocations:watch`, { headers: { ...headers, accept } });
            if (!response.ok) throw refusal(await response.json());
            const told = response.headers.get("content-type");
            if (told !== accept) throw new Error(`asked for ${accept}, and got ${told}`);
            const read = accept === "text/event-stream" ? event : JSON.parse;
            for await (const piece of FORMATS[accept](response.body)) {
                const { error, revocations, ...other } = read(piece);
                if (error) throw refusal(error);
                for (const one of revocations?.revocations ?? []) tell("ended", one.session_id);
                for (const kind of Object.keys(other)) if (KINDS[kind]) tell(KINDS[kind]);
            }
        },
    };
}
