// better-auth on Postgres, in production's mode, without rate limits and telemetry.
//   node server.mjs serve PORT    serves with two processes
//   node server.mjs seed COUNT    creates sessions, and prints the cookie of each
// The database is libpq's: PGHOST, PGDATABASE, PGUSER.
import cluster from "node:cluster";
import { createHmac } from "node:crypto";
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import pg from "pg";

const PROCESSES = 2;
const SECRET = "a secret of more than thirty-two characters, for a benchmark";
const [command, argument] = process.argv.slice(2);

const pool = new pg.Pool({ max: 16 });
const auth = betterAuth({
  baseURL: "http://127.0.0.1",
  database: pool,
  secret: SECRET,
  rateLimit: { enabled: false },
  telemetry: { enabled: false },
});

async function migrate() {
  const { runMigrations } = await getMigrations(auth.options);
  await runMigrations();
}

async function seed(count) {
  const { internalAdapter, authCookies } = await auth.$context;
  const user = await internalAdapter.createUser({ email: `${process.pid}@example.org`, name: "ada" });
  const one = async () => {
    const { token } = await internalAdapter.createSession(user.id);
    const signature = createHmac("sha256", SECRET).update(token).digest("base64");
    console.log(`${authCookies.sessionToken.name}=${encodeURIComponent(`${token}.${signature}`)}`);
  };
  const worker = async (n) => {
    for (let at = n; at < count; at += 8) await one();
  };
  await Promise.all(Array.from({ length: 8 }, (_, n) => worker(n)));
  await pool.end();
}

if (command === "seed") {
  await seed(Number(argument));
} else if (cluster.isPrimary) {
  await migrate();
  await pool.end();
  for (let n = 0; n < PROCESSES; n++) cluster.fork();
} else {
  createServer({ keepAliveTimeout: 75_000 }, toNodeHandler(auth)).listen(Number(argument), "127.0.0.1");
}
