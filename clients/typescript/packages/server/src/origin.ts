/** An `Origin` header: a scheme, a host and perhaps a port. */
const ORIGIN = /^(https?:)\/\/([^/\\@?#,\s]+)$/;
const HOST = /^[^/\\@?#,\s]+$/;

/** Where browsers treat `http` like `https`. */
const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

/**
 * Whether a page of the app's own origin sent the request, by the rule that sessiond has for cookies (docs/guides/cookies.md): its
 * `Sec-Fetch-Site`, or else its `Origin`, or else the header `x-sessiond-csrf`.
 *
 * For the route of the login form. It has no session yet that sessiond could protect, so another site could sign a visitor in as
 * somebody else. Compares with `Host`: not behind a proxy that changes it.
 */
export function isSameOrigin(header: (name: string) => string | undefined): boolean {
    const site = header("sec-fetch-site");
    if (site !== undefined) return site === "same-origin" || site === "none";
    const origin = header("origin");
    if (origin === undefined) return header("x-sessiond-csrf") !== undefined;
    const [, scheme] = ORIGIN.exec(origin) ?? [];
    const host = header("host") ?? "";
    if (!scheme || !HOST.test(host)) return false;
    try {
        const own = new URL(`${scheme}//${host}`);
        return new URL(origin).origin === own.origin && (scheme === "https:" || LOOPBACK.test(own.hostname));
    } catch {
        return false;
    }
}
