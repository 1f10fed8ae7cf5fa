const { SESSIOND_URL = "http://127.0.0.1:8080" } = process.env;

/** Pages call sessiond on their own origin. */
export default {
    rewrites: async () => [{ source: "/auth/:path*", destination: `${SESSIOND_URL}/auth/:path*` }],
};
