import type { FastifyPluginAsync, FastifyReply } from "fastify";
import { PRIVATE, type RequestSession, type VerifierOptions, createVerifier } from "./index.js";

declare module "fastify" {
    interface FastifyRequest {
        /** The session. `null` only if the plugin is `optional`. */
        sessiond: RequestSession | null;
    }
}

/** A plugin for Fastify: `app.register(sessiond, { url, project })`. Applies to the instance that registers it. */
export const sessiond: FastifyPluginAsync<VerifierOptions> = async (app, options) => {
    const verify = createVerifier(options);
    app.decorateRequest("sessiond", null);
    /** The responses with new cookies, which caches must not keep, whatever the handler says. */
    const renewed = new WeakSet<FastifyReply>();
    app.addHook("onSend", async (_request, reply, payload) => {
        if (renewed.has(reply)) reply.header(...PRIVATE);
        return payload;
    });
    app.addHook("onRequest", async (request, reply) => {
        const header = (name: string) => {
            const value = request.headers[name];
            return Array.isArray(value) ? value.join(", ") : value;
        };
        const verdict = await verify({ method: request.method, path: request.url, header, from: { peer: request.socket.remoteAddress, ip: request.ip } });
        for (const [name, value] of verdict.headers) reply.header(name, value);
        if (verdict.status) return reply.code(verdict.status).send(verdict.body);
        if (verdict.headers.length > 0) renewed.add(reply);
        request.sessiond = verdict.session ?? null;
    });
};

// Without an encapsulation of its own, so that the routes beside it are covered (fastify-plugin does the same).
Object.assign(sessiond, { [Symbol.for("skip-override")]: true, [Symbol.for("fastify.display-name")]: "sessiond" });
