import { type IncomingMessage, type ServerResponse, request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { type RequestSession, type VerifierOptions, createVerifier } from "./index.js";

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
        verify({ method: request.method ?? "GET", path: (request as { originalUrl?: string }).originalUrl ?? request.url ?? "/", header }).then((verdict) => {
            for (const [name, value] of verdict.headers) response.appendHeader(name, value);
            if (verdict.status) return void response.writeHead(verdict.status).end(verdict.body);
            if (verdict.session) request.sessiond = verdict.session;
            next();
        }).catch(next);
    };
}

/**
 * Serves sessiond's own routes on the app's origin, for pages in cookie mode, where no proxy in front of the app does:
 * `app.use(sessiondApi({ url }))`, before anything that reads bodies. Passes on what begins with `/auth/`.
 */
export function sessiondApi({ url }: { url: string }) {
    const target = url.replace(/\/+$/, "");
    const send = target.startsWith("https:") ? httpsRequest : httpRequest;
    return (request: IncomingMessage, response: ServerResponse, next: (error?: unknown) => void): void => {
        const path = request.url ?? "";
        if (!path.startsWith("/auth/")) return next();
        // With the page's own host, by which sessiond tells a page of another origin.
        const headers = { ...request.headers, "x-forwarded-host": request.headers.host };
        const onward = send(target + path, { method: request.method ?? "GET", headers }, (answer) => {
            response.writeHead(answer.statusCode ?? 502, answer.headers);
            response.flushHeaders();
            answer.on("error", () => response.destroy()).pipe(response);
        });
        onward.on("error", () => {
            if (response.headersSent) response.destroy();
            else response.writeHead(503, { "retry-after": "1" }).end();
        });
        response.on("close", () => onward.destroy());
        request.pipe(onward);
    };
}
