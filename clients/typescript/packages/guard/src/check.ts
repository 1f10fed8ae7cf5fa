// The check of one request, for middleware.

import type { IncomingMessage } from "node:http";
import type { Guard } from "./guard.js";
import { Refusal, type Requirement, bearer } from "./refusal.js";
import type { Principal } from "./token.js";
import type { Trace } from "./upstream.js";

/** What a route asks for. */
export interface RouteOptions extends Requirement {
    /** Also lets requests without a token through; they have no principal. Refuses requests with an invalid token. */
    optional?: boolean;
}

/** The principal of the request (undefined only if `optional`), or why it is refused. */
export interface Outcome {
    principal?: Principal | undefined;
    refusal?: Refusal;
}

/** Checks a request with these `Authorization` headers. */
export async function check(
    guard: Guard,
    headers: readonly string[],
    { optional = false, ...requirement }: RouteOptions = {},
    trace: Trace = {},
): Promise<Outcome> {
    try {
        const token = read(guard, headers);
        if (token === undefined && optional) return { principal: undefined };
        if (token === undefined) {
            guard.countRefusal();
            throw Refusal.credentialsMissing();
        }
        const principal = await guard.verify(token, trace);
        guard.require(principal, requirement);
        return { principal };
    } catch (error) {
        if (error instanceof Refusal) return { refusal: error };
        throw error;
    }
}

/**
 * The values of a header, one for each line, whose name is in lower case. `headersDistinct` is not everywhere: a request over
 * HTTP/2 and an injected one have the lines alone.
 */
export function headerValues({ rawHeaders }: Pick<IncomingMessage, "rawHeaders">, name: string): string[] {
    return rawHeaders.filter((_, at) => at % 2 === 1 && rawHeaders[at - 1]?.toLowerCase() === name);
}

/** The trace of a request. */
export function traceOf(request: Pick<IncomingMessage, "rawHeaders">): Trace {
    const only = (name: string) => {
        const [value, ...more] = headerValues(request, name);
        return more.length === 0 ? value : undefined;
    };
    return { traceparent: only("traceparent"), tracestate: only("tracestate") };
}

function read(guard: Guard, headers: readonly string[]): string | undefined {
    try {
        return bearer(headers);
    } catch (error) {
        guard.countRefusal();
        throw error;
    }
}
