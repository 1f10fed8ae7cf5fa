import type { MiddlewareHandler } from "hono";
import type { Guard } from "./guard.js";
import { type RouteOptions, check } from "./check.js";
import type { Principal } from "./token.js";

/** Middleware for Hono. The handler reads `context.get("principal")`: `undefined` only if it is `optional`. */
export function sessiond(guard: Guard, options?: RouteOptions): MiddlewareHandler<{ Variables: { principal: Principal | undefined } }> {
    return async (context, next) => {
        const header = context.req.header("authorization");
        const trace = { traceparent: context.req.header("traceparent"), tracestate: context.req.header("tracestate") };
        const { refusal, principal } = await check(guard, header === undefined ? [] : [header], options, trace);
        if (refusal) {
            const { status, headers, body } = refusal.response();
            return new Response(body, { status, headers });
        }
        context.set("principal", principal);
        await next();
        return undefined;
    };
}
