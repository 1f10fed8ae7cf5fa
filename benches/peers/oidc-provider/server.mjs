// oidc-provider on Postgres. It comes without a database adapter: adapter.mjs is ours, with prepared statements.
//   node server.mjs serve PORT    serves with two processes
//   node server.mjs seed COUNT    creates grants with a refresh token and an access token each; prints the refresh tokens
// The database is libpq's: PGHOST, PGDATABASE, PGUSER.
import cluster from "node:cluster";
import { createServer } from "node:http";
import Provider from "oidc-provider";
import { adapterOn, createTable, pool } from "./adapter.mjs";

const PROCESSES = 2;
const [command, argument] = process.argv.slice(2);

const provider = () =>
  new Provider("http://127.0.0.1", {
    adapter: adapterOn(pool),
    clients: [
      {
        client_id: "bench",
        client_secret: "secret",
        grant_types: ["authorization_code", "refresh_token"],
        redirect_uris: ["https://app.example.org/callback"],
      },
    ],
    features: { devInteractions: { enabled: false }, introspection: { enabled: true }, revocation: { enabled: true } },
    ttl: { AccessToken: 3600, Grant: 86_400, RefreshToken: 86_400 },
  });

async function seed(count) {
  const { Client, Grant, AccessToken, RefreshToken } = provider();
  const client = await Client.find("bench");
  const one = async () => {
    const grant = new Grant({ accountId: "ada", clientId: "bench" });
    grant.addOIDCScope("openid offline_access");
    const grantId = await grant.save();
    const token = { accountId: "ada", authTime: 1, claims: {}, client, grantId, gty: "authorization_code", scope: "openid offline_access" };
    await new AccessToken(token).save();
    console.log(await new RefreshToken(token).save());
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
  await createTable();
  await pool.end();
  for (let n = 0; n < PROCESSES; n++) cluster.fork();
} else {
  createServer({ keepAliveTimeout: 75_000 }, provider().callback()).listen(Number(argument), "127.0.0.1");
}
