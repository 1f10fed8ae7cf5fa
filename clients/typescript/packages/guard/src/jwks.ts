// The project's public keys, as last read from its JWK Set (RFC 7517, RFC 7518 §6.2).

import { type KeyObject, createPublicKey } from "node:crypto";
import { decode, isUuid } from "./token.js";

/** Keys remain usable for this many times their `max-age`: once as cached, and once more to survive an outage. */
const USABLE_MAX_AGES = 2;

/** The `max-age` of a response that has none, and its bounds. */
const MAX_AGE_MS = 60 * 60_000;
const MAX_AGE_MIN_MS = 1_000;
const MAX_AGE_MAX_MS = 24 * 60 * 60_000;

/** The keys of a JWK Set, by their `kid`. Skips what is not an ES256 signature key. Undefined if the text is no JWK Set. */
export function readKeys(text: string): Map<string, KeyObject> | undefined {
    let set: unknown;
    try {
        set = JSON.parse(text);
    } catch {
        return undefined;
    }
    const jwks = (set as { keys?: unknown } | null)?.keys;
    if (!Array.isArray(jwks)) return undefined;
    const keys = new Map<string, KeyObject>();
    for (const jwk of jwks as unknown[]) {
        const { kty, crv, alg, use, kid, x, y } = (jwk ?? {}) as Record<string, unknown>;
        const isOurs = kty === "EC" && crv === "P-256" && (alg ?? "ES256") === "ES256" && (use ?? "sig") === "sig";
        if (!isOurs || typeof kid !== "string" || !isUuid(kid) || typeof x !== "string" || typeof y !== "string") continue;
        if (decode(x)?.length !== 32 || decode(y)?.length !== 32) continue;
        try {
            keys.set(kid, createPublicKey({ key: { kty, crv, x, y }, format: "jwk" }));
        } catch {
            // The point is not on the curve.
        }
    }
    return keys;
}

/** The `max-age` of a `Cache-Control` header (RFC 9111 §5.2.2.1), in milliseconds, within the bounds. */
export function maxAge(cacheControl: string | undefined): number {
    const seconds = /(?:^|,)\s*max-age=(\d+)\s*(?:,|$)/.exec(cacheControl ?? "")?.[1];
    const age = seconds === undefined ? MAX_AGE_MS : Number(seconds) * 1_000;
    return Math.min(Math.max(age, MAX_AGE_MIN_MS), MAX_AGE_MAX_MS);
}

/** The cached keys. */
export class Jwks {
    #keys: Map<string, KeyObject> | undefined;
    /** When the request was sent, on the monotonic clock. */
    #requestedAt = 0;
    #maxAge = 0;

    store(keys: Map<string, KeyObject>, requestedAt: number, maxAge: number): void {
        this.#keys = keys;
        this.#requestedAt = requestedAt;
        this.#maxAge = maxAge;
    }

    /** Whether the keys were ever read. */
    get isThere(): boolean {
        return this.#keys !== undefined;
    }

    find(kid: string): KeyObject | undefined {
        return this.#keys?.get(kid);
    }

    /** The time since the keys were last read; undefined if they never were. */
    age(elapsed: number): number | undefined {
        return this.#keys && elapsed - this.#requestedAt;
    }

    /** Whether the keys are recent enough to verify tokens with. */
    isUsable(elapsed: number): boolean {
        return this.#keys !== undefined && elapsed - this.#requestedAt <= this.#maxAge * USABLE_MAX_AGES;
    }
}
