/** The session of a request, as sessiond verified it a moment ago. */
export interface RequestSession {
    userId: string;
    sessionId: string;
    projectId: string;
    /** Who acts as the user, if somebody does. */
    impersonatorId?: string;
    /** The claims of the access token, the application's own among them. */
    claims: Readonly<Record<string, unknown>>;
}

export interface VerifierOptions {
    /** The URL of sessiond, with its base path if it has one. */
    url: string;
    project: string;
    /** The timeout of each call to sessiond, in milliseconds. Default: 2,000. */
    timeoutMs?: number;
    /** Whether requests without a session pass, with none. Default: they are refused. */
    optional?: boolean;
}

/** The parts of a request that decide. */
export interface VerifiedRequest {
    method: string;
    header(name: string): string | undefined;
}

/** What to do with a request: pass it on, or answer with `status`. Both with these response headers. */
export type Verdict =
    | { readonly session: RequestSession | undefined; readonly status?: undefined; readonly headers: readonly Header[] }
    | { readonly session?: undefined; readonly status: number; readonly headers: readonly Header[] };

/** A response header's name and value. One name may occur several times. */
export type Header = readonly [name: string, value: string];

/** Caches must not keep answers that depend on who asks. */
const PRIVATE: Header = ["cache-control", "no-store"];
const UNAVAILABLE: Verdict = { status: 503, headers: [["retry-after", "1"], PRIVATE] };

/** Passed on to sessiond, if the request has it. */
const FORWARDED = ["authorization", "traceparent", "tracestate"];

function claimsOf(authorization: string | undefined): Record<string, unknown> {
    const payload = authorization?.split(".")[1] ?? "";
    return JSON.parse(Buffer.from(payload, "base64url").toString());
}

/**
 * Asks sessiond about each request: a sign-out counts from the next request on. If sessiond does not answer, requests are
 * refused with 503, never with 401: clients would discard good tokens.
 */
export function createVerifier(options: VerifierOptions): (request: VerifiedRequest) => Promise<Verdict> {
    const { url, project, timeoutMs = 2_000, optional = false } = options;
    const target = `${url.replace(/\/+$/, "")}/projects/${encodeURIComponent(project)}/auth/verify`;
    return async (request) => {
        const headers = new Headers();
        for (const name of FORWARDED) {
            const value = request.header(name);
            if (value !== undefined) headers.set(name, value);
        }
        if (optional && !headers.has("authorization")) return { session: undefined, headers: [] };
        let answer: Response;
        try {
            answer = await fetch(target, { headers, redirect: "error", signal: AbortSignal.timeout(timeoutMs) });
            await answer.body?.cancel();
        } catch {
            return UNAVAILABLE;
        }
        if (answer.status === 401 || answer.status === 403) {
            if (optional) return { session: undefined, headers: [] };
            const challenge = answer.headers.get("www-authenticate");
            return { status: answer.status, headers: [...(challenge ? [["www-authenticate", challenge] as const] : []), PRIVATE] };
        }
        // Anything else, such as an unknown project or an outage, is not the user's fault.
        if (answer.status !== 200) return UNAVAILABLE;
        const text = (name: string) => decodeURIComponent(answer.headers.get(name) ?? "");
        const impersonatorId = text("x-impersonator-id");
        const session: RequestSession = {
            userId: text("x-user-id"),
            sessionId: text("x-session-id"),
            projectId: text("x-project-id"),
            ...(impersonatorId && { impersonatorId }),
            claims: claimsOf(answer.headers.get("authorization") ?? request.header("authorization")),
        };
        return { session, headers: [] };
    };
}
