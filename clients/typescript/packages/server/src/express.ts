import type { IncomingMessage, ServerResponse } from "node:http";
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
        verify({ method: request.method ?? "GET", header }).then((verdict) => {
            for (const [name, value] of verdict.headers) response.appendHeader(name, value);
            if (verdict.status) return void response.writeHead(verdict.status).end();
            if (verdict.session) request.sessiond = verdict.session;
            next();
        }).catch(next);
    };
}
