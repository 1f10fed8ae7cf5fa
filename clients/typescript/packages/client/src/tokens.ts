import type { Identity, Tokens } from "./types.js";

/** Held tokens, decoded. Times are milliseconds of the server's clock. */
export interface Held extends Identity {
    access: string;
    refresh: string;
    issuedAt: number;
    expiresAt: number;
}

/** Header values that `fetch` accepts. It would print others in its error message. */
const PLAIN = /^[\w.~+/=-]{1,16384}$/;

/** Decodes tokens without verifying them; `undefined` if they are malformed. */
export function decode(tokens: Partial<Tokens> | null): Held | undefined {
    const { access_token: access, refresh_token: refresh } = tokens ?? {};
    try {
        if (!PLAIN.test(access!) || !PLAIN.test(refresh!)) return;
        const bytes = atob(access!.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/"));
        const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0))));
        const { sub, sid, iat, exp } = claims;
        if (!sub || !sid || !(exp > iat)) return;
        return { access: access!, refresh: refresh!, userId: sub, sessionId: sid, claims, issuedAt: iat * 1e3, expiresAt: exp * 1e3 };
    } catch {}
}

/** Decodes what was stored, which others may have written. */
export function parse(text: string | null): Held | undefined {
    try {
        return decode(JSON.parse(text!));
    } catch {}
}

export const encode = ({ access, refresh }: Held): string => JSON.stringify({ access_token: access, refresh_token: refresh });

/** Whether a token should be renewed: within 30 s of its expiry, or within half of a short lifetime. */
export const isStale = (held: Held, now: number): boolean =>
    now >= held.expiresAt - Math.min(30_000, (held.expiresAt - held.issuedAt) / 2);
