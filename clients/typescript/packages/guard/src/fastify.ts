import type { FastifyPluginAsync, preHandlerAsyncHookHandler } from "fastify";
import type { Guard } from "./guard.js";
import { type RouteOptions, check, headerValues, traceOf } from "./check.js";
import type { Principal } from "./token.js";

declare module "fastify" {
    interface FastifyRequest {
        /** The signed-in user. `null` only if the plugin is `optional`. */
        principal: Principal | null;
    }
}

/** A plugin for Fastify: `app.register(sessiond, { guard })`. Applies to the instance that registers it. */
export const sessiond: FastifyPluginAsync<RouteOptions & { guard: Guard }> = async (app, { guard, ...options }) => {
    app.decorateRequest("principal", null);
    app.addHook("onRequest", requires(guard, options));
};

// Without an encapsulation of its own, so that the routes beside it are covered (fastify-plugin does the same).
Object.assign(sessiond, { [Symbol.for("skip-override")]: true, [Symbol.for("fastify.display-name")]: "sessiond-guard" });

/** A hook for one route that asks for more: `{ onRequest: requires(guard, { acr: ["aal2"] }) }`. */
export function requires(guard: Guard, options: RouteOptions): preHandlerAsyncHookHandler {
    return async (request, reply) => {
        const authorization = headerValues(request.raw, "authorization");
        const { refusal, principal } = await check(guard, authorization, options, traceOf(request.raw));
        if (refusal) {
            const { status, headers, body } = refusal.response();
            return reply.code(status).headers(headers).send(body);
        }
        request.principal = principal ?? null;
    };
}
