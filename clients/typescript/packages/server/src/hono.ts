import type { MiddlewareHandler } from "hono";
import { type RequestSession, type VerifierOptions, createVerifier } from "./index.js";

/** Where `@hono/node-server` puts the request. */
interface NodeBindings {
    incoming?: { socket: { remoteAddress?: string } };
}

/** Middleware for Hono. The handler reads `context.get("sessiond")`: `undefined` only if it is `optional`. */
export function sessiond(options: VerifierOptions): MiddlewareHandler<{ Variables: { sessiond: RequestSession | undefined } }> {
    const verify = createVerifier(options);
    return async (context, next) => {
        const verdict = await verify({
            method: context.req.method,
            path: context.req.url.replace(/^[a-z]+:\/\/[^/]*/, ""),
            header: (name) => context.req.header(name),
            from: { peer: (context.env as NodeBindings | undefined)?.incoming?.socket.remoteAddress },
        });
        if (verdict.status) return new Response(verdict.body, { status: verdict.status, headers: new Headers(verdict.headers.map(([...header]) => header)) });
        context.set("sessiond", verdict.session);
        await next();
        for (const [name, value] of verdict.headers) context.header(name, value, { append: true });
        return undefined;
    };
}
