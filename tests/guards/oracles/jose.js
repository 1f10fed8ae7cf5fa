// What jose says about each token of the vectors that is good or bad by signature and claims: the same as the guards.
import { readFileSync } from "node:fs";
import * as jose from "jose";

const file = JSON.parse(readFileSync(process.argv[2], "utf8"));
const jwks = jose.createLocalJWKSet(file.jwks);
let [agreed, disagreed] = [0, 0];
for (const { name, token, now_ms, oracle } of file.tokens) {
    if (oracle === null) continue;
    const options = {
        issuer: `${file.issuer}/projects/${file.project}`,
        audience: file.project,
        typ: "at+jwt",
        algorithms: ["ES256"],
        currentDate: new Date(now_ms),
    };
    let says = "good";
    try {
        await jose.jwtVerify(token, jwks, options);
    } catch {
        says = "bad";
    }
    if (says === oracle) agreed += 1;
    else {
        disagreed += 1;
        console.error(`jose says ${says} of: ${name}`);
    }
}
console.log(`jose: agrees on ${agreed} tokens`);
process.exitCode = disagreed ? 1 : 0;
