import { type IncomingHttpHeaders, type IncomingMessage, Agent as HttpAgent, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";

export { isSameOrigin } from "./origin.js";

/** The session of a request, as sessiond verified it a moment ago. */
export interface RequestSession {
    userId: string;
    sessionId: string;
    projectId: string;
    /** Who acts as the user, if somebody does. */
    impersonatorId?: string;
    /** The claims of the access token, the application's own among them. */
    claims: Readonly<Record<string, unknown>>;
    /** The access token, for calls to other services on behalf of the user. A function, so that no log prints it. */
    accessToken(): string;
}

export interface VerifierOptions {
    /** The URL of sessiond, with its base path if it has one. */
    url: string;
    project: string;
    /** The timeout of each call to sessiond, in milliseconds. Default: 2,000. */
    timeoutMs?: number;
    /** Whether requests without a session pass, with none. Default: they are refused. */
    optional?: boolean;
    /** Whether cookies count (docs/guides/cookies.md). They are renewed in the response when it is time. Default: only bearer tokens. */
    cookies?: boolean;
    /** In cookie mode: the login page, to which page loads without a session are redirected, with `return_to`. */
    login?: string;
}

/** The parts of a request that decide. */
export interface VerifiedRequest {
    method: string;
    /** The path and the query. */
    path: string;
    header(name: string): string | undefined;
    /** Where it came from. */
    from?: Sender;
}

/** Who sent a request. */
export interface Sender {
    /** The address of the connection, which may be that of a proxy. */
    peer?: string | undefined;
    /** The client's, if the framework knows the application's proxies: in Express by `trust proxy`, in Fastify by `trustProxy`. */
    ip?: string | undefined;
}

/** What to do with a request: pass it on, or answer with `status`. Both with these response headers. */
export type Verdict =
    | { readonly session: RequestSession | undefined; readonly status?: undefined; readonly headers: readonly Header[] }
    | { readonly session?: undefined; readonly status: number; readonly headers: readonly Header[]; readonly body: string };

/** A response header's name and value. One name may occur several times. */
export type Header = readonly [name: string, value: string];

/** Caches must not keep answers that depend on who asks. */
export const PRIVATE: Header = ["cache-control", "no-store"];
const UNAVAILABLE: Verdict = {
    status: 503,
    headers: [["retry-after", "1"], ["content-type", "text/plain; charset=utf-8"], PRIVATE],
    body: "It is not known at the moment who is signed in. Try again.\n",
};
const NOBODY: Verdict = { session: undefined, headers: [] };

/** Passed on to sessiond, if the request has it. */
const FORWARDED = ["authorization", "traceparent", "tracestate", "user-agent"];

/** By which sessiond tells a page load and a request of another site. */
const FORWARDED_BY_COOKIE = [
    "cookie", "origin", "sec-fetch-site", "sec-fetch-mode", "accept", "x-sessiond-csrf", "sec-websocket-version", "sec-websocket-key",
];

function claimsOf(authorization: string): Record<string, unknown> {
    const payload = authorization.split(".")[1] ?? "";
    return JSON.parse(Buffer.from(payload, "base64url").toString());
}

/** The sender of a request of Node's, which may be one of Express's. */
export const senderOf = (request: IncomingMessage): Sender => ({ peer: request.socket.remoteAddress, ip: (request as { ip?: string }).ip });

/**
 * The `X-Forwarded-For` to sessiond, as every proxy writes it: what came, and the address of the connection. sessiond follows it from
 * the end, as far as each is one of its `--trusted-proxy`, so what a client makes up does not count. Undefined where the connection has
 * no address, as on a Unix socket, and the framework knows none.
 */
export function forwardedFor(came: string | undefined, { peer, ip = peer }: Sender): string | undefined {
    if (ip !== peer) return ip;
    return peer && [came, peer].filter(Boolean).join(", ");
}

/** Not by `fetch`, which adds headers of its own, `Sec-Fetch-Mode` among them. */
function ask(target: URL, headers: Record<string, string>, timeoutMs: number): Promise<{ status: number; headers: IncomingHttpHeaders }> {
    const isTls = target.protocol === "https:";
    return new Promise((answered, failed) => {
        const signal = AbortSignal.timeout(timeoutMs);
        const call = (isTls ? httpsRequest : httpRequest)(target, { headers, signal, agent: isTls ? TLS : PLAIN }, (response) => {
            response.on("error", failed).resume();
            answered({ status: response.statusCode ?? 0, headers: response.headers });
        });
        call.on("error", failed).end();
    });
}

const PLAIN = new HttpAgent({ keepAlive: true, maxSockets: 64 });
const TLS = new HttpsAgent({ keepAlive: true, maxSockets: 64 });

/**
 * Asks sessiond about each request: a sign-out counts from the next request on. If sessiond does not answer, requests are
 * refused with 503, never with 401: clients would discard good tokens.
 */
export function createVerifier(options: VerifierOptions): (request: VerifiedRequest) => Promise<Verdict> {
    const { url, project, timeoutMs = 2_000, optional = false, cookies = false, login } = options;
    const target = new URL(`${url.replace(/\/+$/, "")}/projects/${encodeURIComponent(project)}/auth/verify`);
    if (cookies && login !== undefined && !optional) target.searchParams.set("login", login);
    const names = cookies ? [...FORWARDED, ...FORWARDED_BY_COOKIE] : FORWARDED;
    return async (request) => {
        const headers: Record<string, string> = { "x-forwarded-method": request.method, "x-forwarded-uri": request.path };
        for (const name of names) {
            const value = request.header(name);
            if (value !== undefined) headers[name] = value;
        }
        const addresses = forwardedFor(request.header("x-forwarded-for"), request.from ?? {});
        if (addresses !== undefined) headers["x-forwarded-for"] = addresses;
        const host = request.header("host");
        if (cookies && host !== undefined) headers["x-forwarded-host"] = host;
        if (optional && !headers["authorization"] && !headers["cookie"]) return NOBODY;
        let answer;
        try {
            answer = await ask(target, headers, timeoutMs);
        } catch {
            return UNAVAILABLE;
        }
        const one = (name: string) => String(answer.headers[name] ?? "");
        if ([302, 303, 401, 403].includes(answer.status)) {
            // A request of another site is refused even where nobody has to be signed in.
            if (optional && answer.status !== 403) return NOBODY;
            const kept = ["location", "www-authenticate"].flatMap((name) => (one(name) ? [[name, one(name)] as const] : []));
            return { status: answer.status, headers: [...kept, PRIVATE], body: "" };
        }
        // Anything else, such as an unknown project or an outage, is not the user's fault.
        if (answer.status !== 200) return UNAVAILABLE;
        const text = (name: string) => decodeURIComponent(one(name));
        const impersonatorId = text("x-impersonator-id");
        const authorization = one("authorization") || (headers["authorization"] ?? "");
        const session: RequestSession = {
            userId: text("x-user-id"),
            sessionId: text("x-session-id"),
            projectId: text("x-project-id"),
            ...(impersonatorId && { impersonatorId }),
            claims: claimsOf(authorization),
            accessToken: () => authorization.slice("Bearer ".length),
        };
        const renewed = (answer.headers["set-cookie"] ?? []).map((value) => ["set-cookie", value] as const);
        return { session, headers: renewed.length > 0 ? [...renewed, PRIVATE] : [] };
    };
}
