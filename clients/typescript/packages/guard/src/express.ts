import type { IncomingMessage, ServerResponse } from "node:http";
import type { Guard } from "./guard.js";
import { type RouteOptions, check, headerValues, traceOf } from "./check.js";
import type { Principal } from "./token.js";

declare module "http" {
    interface IncomingMessage {
        /** The signed-in user, once the middleware has run. Always there unless it is `optional`. */
        principal?: Principal | undefined;
    }
}

/** Middleware for Express, and for everything else that takes Connect's: `app.use(sessiond(guard))`. Sets `request.principal`. */
export function sessiond(guard: Guard, options?: RouteOptions) {
    return (request: IncomingMessage, response: ServerResponse, next: (error?: unknown) => void): void => {
        check(guard, headerValues(request, "authorization"), options, traceOf(request)).then(({ refusal, principal }) => {
            if (refusal) {
                const { status, headers, body } = refusal.response();
                response.writeHead(status, headers).end(body);
                return;
            }
            request.principal = principal;
            next();
        }).catch(next);
    };
}
