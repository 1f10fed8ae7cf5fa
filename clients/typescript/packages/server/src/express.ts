import { type IncomingMessage, type ServerResponse, request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { PRIVATE, type RequestSession, type VerifierOptions, createVerifier, forwardedFor, senderOf } from "./index.js";

declare module "http" {
    interface IncomingMessage {
        /** The session, once the middleware has run. Always there unless it is `optional`. */
        sessiond?: RequestSession;
    }
}

/** Middleware for Express, and for everything else that takes Connect's. Sets `request.sessiond`. */
export function sessiond(options: VerifierOptions) {
    const verify = createVerifier(options);
    return (request: IncomingMessage, response: ServerResponse, next: (error?: unknown) => void): void => {
        const header = (name: string) => {
            const value = request.headers[name];
            return Array.isArray(value) ? value.join(", ") : value;
        };
        verify({ method: request.method ?? "GET", path: (request as { originalUrl?: string }).originalUrl ?? request.url ?? "/", header, from: senderOf(request) }).then((verdict) => {
            for (const [name, value] of verdict.headers) response.appendHeader(name, value);
            if (verdict.status) return void response.writeHead(verdict.status).end(verdict.body);
            if (verdict.session) request.sessiond = verdict.session;
            // They are new cookies.
            if (verdict.headers.length > 0) keepPrivate(response);
            next();
        }).catch(next);
    };
}

/** Sets `Cache-Control` when the head is written, whatever the handler has said by then: the response has new cookies. */
function keepPrivate(response: ServerResponse): void {
    const writeHead = response.writeHead;
    const isOther = (name: unknown) => String(name).toLowerCase() !== PRIVATE[0];
    response.writeHead = ((...given: unknown[]) => {
        // Headers that are given here take precedence over those that were set.
        const last = given.length - 1;
        const headers = given[last];
        if (Array.isArray(headers)) {
            given[last] = headers.flatMap((name: unknown, at) => (at % 2 === 0 && isOther(name) ? [name, headers[at + 1]] : []));
        } else if (typeof headers === "object" && headers !== null) {
            given[last] = Object.fromEntries(Object.entries(headers).filter(([name]) => isOther(name)));
        }
        response.setHeader(...PRIVATE);
        return writeHead.apply(response, given as Parameters<typeof writeHead>);
    }) as typeof writeHead;
}

/** How long a request that changes something may take when its page has gone, in milliseconds. */
const LEFT_MS = 30_000;

/**
 * Serves sessiond's own routes on the app's origin, for pages in cookie mode, where no proxy in front of the app does:
 * `app.use(sessiondApi({ url }))`, before anything that reads bodies. Passes on what begins with `/auth/`.
 */
export function sessiondApi({ url }: { url: string }) {
    const target = url.replace(/\/+$/, "");
    const send = target.startsWith("https:") ? httpsRequest : httpRequest;
    return (request: IncomingMessage, response: ServerResponse, next: (error?: unknown) => void): void => {
        const path = request.url ?? "";
        // As it is read on the way: `/auth/../x` is not below `/auth/`.
        if (!path.startsWith("/auth/") || !new URL(path, "http://localhost").pathname.startsWith("/auth/")) return next();
        const { forwarded, "x-forwarded-for": came, ...headers } = request.headers;
        const addresses = forwardedFor(String(came ?? ""), senderOf(request));
        if (addresses !== undefined) headers["x-forwarded-for"] = addresses;
        // The page's own host, by which sessiond tells a page of another origin.
        if (headers.host !== undefined) headers["x-forwarded-host"] = headers.host;
        const onward = send(target + path, { method: request.method ?? "GET", headers }, (answer) => {
            if (response.destroyed) return void answer.resume();
            response.writeHead(answer.statusCode ?? 502, answer.headers);
            response.flushHeaders();
            answer.on("error", () => response.destroy()).pipe(response);
        });
        onward.on("error", () => {
            if (response.headersSent) response.destroy();
            else response.writeHead(503, { "retry-after": "1" }).end();
        });
        response.on("close", () => {
            // A sign-out that has been received is carried out, whether or not the page waits for it.
            if (request.method === "GET" || !request.complete) onward.destroy();
            else onward.setTimeout(LEFT_MS, () => onward.destroy());
        });
        request.pipe(onward);
    };
}
