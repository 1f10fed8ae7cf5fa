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
