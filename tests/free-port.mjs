// A free port, for a program that must know it beforehand. Called as a program, it prints one.

import net from "node:net";
import { fileURLToPath } from "node:url";

/** Below those that the system gives to listeners and connections (Linux: 32,768 and up): one of them might get it first. */
const FIRST = 20_000;
const COUNT = 12_000;

/** A port of 127.0.0.1 that nobody uses. */
export async function freePort() {
    for (;;) {
        const port = FIRST + Math.floor(Math.random() * COUNT);
        const server = net.createServer();
        const isFree = await new Promise((known) => {
            server.on("error", () => known(false)).listen(port, "127.0.0.1", () => known(true));
        });
        if (isFree) {
            await new Promise((closed) => server.close(closed));
            return port;
        }
    }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(await freePort());
