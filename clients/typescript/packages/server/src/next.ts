import { type RequestSession, type VerifierOptions, createVerifier } from "./index.js";

type Handler<Context> = (request: Request, context: Context, session: RequestSession) => Response | Promise<Response>;

/**
 * Wraps the route handlers of a Next.js app, and of anything else that maps a `Request` to a `Response`.
 *
 * ```ts
 * const withSession = sessiond({ url, project });
 * export const GET = withSession(async (request, context, session) => Response.json({ hello: session.userId }));
 * ```
 */
export function sessiond(options: Omit<VerifierOptions, "optional">) {
    const verify = createVerifier(options);
    return <Context>(handler: Handler<Context>) => async (request: Request, context: Context): Promise<Response> => {
        const { pathname, search } = new URL(request.url);
        const header = (name: string) => request.headers.get(name) ?? undefined;
        const verdict = await verify({ method: request.method, path: pathname + search, header });
        const headers = verdict.headers.map(([...header]) => header);
        if (!verdict.session) return new Response(verdict.status ? verdict.body : "", { status: verdict.status ?? 401, headers });
        const response = await handler(request, context, verdict.session);
        if (headers.length === 0) return response;
        // A response of `fetch` or `Response.redirect` has headers that cannot be changed.
        const copy = new Response(response.body, response);
        for (const [name, value] of headers) copy.headers.append(name, value);
        return copy;
    };
}

/** The request headers in which `sessiondProxy` passes the session on. A client's own are removed. */
const IDENTITY = ["x-sessiond-user", "x-sessiond-session"] as const;

/**
 * A `proxy.ts` of Next.js 16 or later, for pages: verifies each request that its `config.matcher` selects, renews cookies in
 * the response, and passes the session on to pages and handlers, which read it by `sessionOf(await headers())`.
 *
 * ```ts
 * import { NextResponse } from "next/server";
 * export const proxy = sessiondProxy(NextResponse, { url, project, cookies: true, login: "/login" });
 * ```
 */
export function sessiondProxy(
    next: { next(init: { request: { headers: Headers } }): Response }, options: VerifierOptions,
): (request: Request) => Promise<Response> {
    const verify = createVerifier(options);
    return async (request) => {
        const { pathname, search } = new URL(request.url);
        const header = (name: string) => request.headers.get(name) ?? undefined;
        const verdict = await verify({ method: request.method, path: pathname + search, header });
        // Next.js accepts absolute locations only, and makes those of its own origin relative.
        const absolute = (name: string, value: string) => (name === "location" ? new URL(value, request.url).href : value);
        const headers = verdict.headers.map(([name, value]): [string, string] => [name, absolute(name, value)]);
        if (verdict.status) return new Response(verdict.body, { status: verdict.status, headers });
        const onward = new Headers(request.headers);
        for (const name of IDENTITY) onward.delete(name);
        if (verdict.session) {
            onward.set(IDENTITY[0], encodeURIComponent(verdict.session.userId));
            onward.set(IDENTITY[1], verdict.session.sessionId);
        }
        const response = next.next({ request: { headers: onward } });
        for (const [name, value] of headers) response.headers.append(name, value);
        return response;
    };
}

/** The session that `sessiondProxy` has passed on. Only for routes that its matcher selects: elsewhere a client could write it. */
export function sessionOf(headers: { get(name: string): string | null }): { userId: string; sessionId: string } | undefined {
    const [user, sessionId] = IDENTITY.map((name) => headers.get(name));
    return user && sessionId ? { userId: decodeURIComponent(user), sessionId } : undefined;
}
