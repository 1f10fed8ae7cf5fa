// Requests to the replicas of sessiond.

import http from "node:http";
import https from "node:https";

/** How long a replica may take to respond. */
const RESPONSE_TIMEOUT_MS = 2_000;

/** The largest response body that is read. */
const RESPONSE_BYTES_MAX = 1_024 * 1_024;

/** The longest `traceparent` and `tracestate` that are passed on. W3C Trace Context §3.3.1.5 asks for at least 512. */
const TRACE_BYTES_MAX = 512;

/** The trace of a request (W3C Trace Context): its headers, if it has one of each. */
export interface Trace {
    traceparent?: string | undefined;
    tracestate?: string | undefined;
}

/** What a call to sessiond carries of a trace. sessiond checks the form. */
export function traceHeaders({ traceparent, tracestate }: Trace): Record<string, string> {
    const isPassedOn = (value: string | undefined): value is string => value !== undefined && value.length <= TRACE_BYTES_MAX && /^[ -~]+$/.test(value);
    if (!isPassedOn(traceparent)) return {};
    return isPassedOn(tracestate) ? { traceparent, tracestate } : { traceparent };
}

/** An error that only an operator can correct. */
export class ConfigurationError extends Error {
    override readonly name = "ConfigurationError";
}

/** A replica did not respond, or not as expected. Another one may, or the same one later. */
export class UnavailableError extends Error {
    override readonly name = "UnavailableError";
}

/** A response, read completely. */
export interface Response {
    status: number;
    headers: http.IncomingHttpHeaders;
    body: string;
}

export interface UpstreamOptions {
    endpoints: readonly string[];
    project: string;
    issuer: string;
    serverKey?: string | undefined;
    tls?: TlsOptions | undefined;
}

/** For `https://` endpoints: the certificates to trust in place of the system's, and a client certificate, in PEM. */
export interface TlsOptions {
    ca?: string | Buffer | undefined;
    cert?: string | Buffer | undefined;
    key?: string | Buffer | undefined;
}

/** One address of sessiond. */
export class Replica {
    /** Its issuer and our server key were checked. */
    isChecked = false;

    constructor(readonly url: string) {}
}

/** The replicas of sessiond. */
export class Upstream {
    readonly replicas: readonly Replica[];
    readonly #options: UpstreamOptions;
    readonly #agents: { "http:": http.Agent; "https:": https.Agent };
    /** The index of the replica that answered last. */
    #preferred = 0;

    constructor(options: UpstreamOptions) {
        this.#options = options;
        this.replicas = options.endpoints.map((url) => new Replica(url.replace(/\/$/, "")));
        const tls = Object.fromEntries(Object.entries(options.tls ?? {}).filter(([, value]) => value !== undefined));
        this.#agents = { "http:": new http.Agent({ keepAlive: true }), "https:": new https.Agent({ keepAlive: true, ...tls }) };
    }

    /** Closes the idle connections. */
    close(): void {
        this.#agents["http:"].destroy();
        this.#agents["https:"].destroy();
    }

    /** The bearer credential; none if a client certificate stands in for it. */
    get authorization(): Record<string, string> {
        const { serverKey } = this.#options;
        return serverKey === undefined ? {} : { authorization: `Bearer ${serverKey}` };
    }

    /** Opens a request, without a time limit of its own. */
    request(replica: Replica, method: string, path: string, headers: Record<string, string>): http.ClientRequest {
        const url = new URL(replica.url + path);
        const { request } = url.protocol === "https:" ? https : http;
        return request(url, { method, headers, agent: this.#agents[url.protocol as "http:" | "https:"] });
    }

    /** Sends a request, and reads the whole response. */
    send(replica: Replica, method: string, path: string, headers: Record<string, string> = {}, body = "", isRepeated = false): Promise<Response> {
        return new Promise((resolve, reject) => {
            // Whether an error leaves anything to decide.
            let isOpen = true;
            const fail = (why: string) => {
                isOpen = false;
                request.destroy();
                reject(new UnavailableError(`${replica.url}: ${why}`));
            };
            const timer = setTimeout(() => fail(`no response within ${RESPONSE_TIMEOUT_MS} ms`), RESPONSE_TIMEOUT_MS);
            const length = { "content-length": String(Buffer.byteLength(body)) };
            const request = this.request(replica, method, path, method === "GET" ? headers : { ...headers, ...length });
            request.on("close", () => clearTimeout(timer)).on("error", (error) => {
                // The server closed an idle connection just when it was used again. All our requests may be repeated.
                const isRepeatable = isOpen && request.reusedSocket && !isRepeated;
                if (isRepeatable) resolve(this.send(replica, method, path, headers, body, true));
                else fail(error.message);
            });
            request.on("response", (response) => {
                isOpen = false;
                const parts: Buffer[] = [];
                let bytes = 0;
                response.on("data", (part: Buffer) => {
                    bytes += part.length;
                    if (bytes > RESPONSE_BYTES_MAX) return fail("the response is too long");
                    parts.push(part);
                });
                response.on("error", (error) => fail(error.message));
                response.on("end", () => {
                    clearTimeout(timer);
                    resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(parts).toString() });
                });
            });
            request.end(body);
        });
    }

    /**
     * Checks that a replica has the expected issuer, and accepts our server key for the project. Asks each replica once per
     * connection.
     */
    async check(replica: Replica): Promise<void> {
        if (replica.isChecked) return;
        const { project, issuer, serverKey } = this.#options;
        const path = `/.well-known/oauth-authorization-server${new URL(issuer).pathname}`;
        const metadata = await this.send(replica, "GET", path);
        if (metadata.status !== 200 && metadata.status !== 404) throw unexpected(replica, path, metadata.status);
        if (metadata.status === 404 || issuerIn(replica, path, metadata.body) !== issuer) {
            const hint = "is it another sessiond, or is the issuer or the project misspelt?";
            throw new ConfigurationError(`${replica.url} does not issue tokens as \`${issuer}\`: ${hint}`);
        }
        // RFC 7662 with Basic, or with a certificate by RFC 8705: the request that names the project together with the credential.
        const basic = Buffer.from(`${project}:${serverKey}`).toString("base64");
        const authorization: Record<string, string> = serverKey === undefined ? {} : { authorization: `Basic ${basic}` };
        const headers = { ...authorization, "content-type": "application/x-www-form-urlencoded" };
        const form = serverKey === undefined ? `token=none&client_id=${project}` : "token=none";
        const { status } = await this.send(replica, "POST", "/oauth2/introspect", headers, form);
        if (status === 401) {
            const credential = serverKey === undefined ? "client certificate" : "server key";
            throw new ConfigurationError(`${replica.url} rejects the ${credential}: it is unknown, revoked, or not one of project \`${project}\``);
        }
        if (status !== 200) throw unexpected(replica, "/oauth2/introspect", status);
        replica.isChecked = true;
    }

    /** Fetches the project's JWK Set from the first replica that answers. */
    jwks(): Promise<Response> {
        return this.#first(async (replica) => {
            await this.check(replica);
            const path = `/projects/${this.#options.project}/.well-known/jwks.json`;
            const response = await this.send(replica, "GET", path);
            if (response.status !== 200) throw unexpected(replica, path, response.status);
            return response;
        });
    }

    /** Asks the first replica that answers whether a token is active. */
    introspect(token: string, trace: Trace): Promise<boolean> {
        return this.#first(async (replica) => {
            await this.check(replica);
            const path = "/auth/tokens:introspect";
            const headers = { ...this.authorization, ...traceHeaders(trace), "content-type": "application/json" };
            const { status, body } = await this.send(replica, "POST", path, headers, JSON.stringify({ token }));
            if (status !== 200) throw unexpected(replica, path, status);
            const { active } = JSON.parse(body) as { active?: unknown };
            // An answer of a proxy is no verdict.
            if (typeof active !== "boolean") throw new UnavailableError(`${replica.url}${path} does not say whether a token is active`);
            return active;
        });
    }

    async #first<T>(send: (replica: Replica) => Promise<T>): Promise<T> {
        const { replicas } = this;
        let last: unknown;
        for (let step = 0; step < replicas.length; step += 1) {
            const at = (this.#preferred + step) % replicas.length;
            try {
                const answer = await send(replicas[at] as Replica);
                this.#preferred = at;
                return answer;
            } catch (error) {
                last = error;
            }
        }
        throw last;
    }
}

function unexpected(replica: Replica, path: string, status: number): UnavailableError {
    return new UnavailableError(`${replica.url}${path} returned ${status}`);
}

/** The issuer in authorization server metadata. A proxy's error page is no evidence of another issuer. */
function issuerIn(replica: Replica, path: string, body: string): string {
    try {
        const { issuer } = JSON.parse(body) as { issuer?: unknown };
        if (typeof issuer === "string") return issuer;
    } catch {
        // Below.
    }
    throw new UnavailableError(`${replica.url}${path} is not authorization server metadata`);
}
