// A relay, an API and clients of one test.

import { Client, memoryStorage } from "@sessiond/client";
import { Api, Relay, createSession } from "./host.js";

export async function stage(t) {
    const [relay, api] = [await Relay.open(), await Api.open()];
    const clients = [];
    t.after(() => {
        clients.forEach((client) => client.close());
        relay.close();
        api.close();
    });

    function open(options = {}) {
        const client = new Client({ url: relay.url, storage: memoryStorage(), apiOrigins: [api.url], ...options });
        client.states = [];
        client.outs = [];
        client.subscribe(({ status }) => client.states.push(status));
        client.onSignedOut((reason) => client.outs.push(reason));
        clients.push(client);
        return client;
    }

    async function signedIn(options, create = createSession) {
        const client = open(options);
        await client.ready();
        client.states.length = 0;
        const session = await create();
        await client.signIn(session);
        return { client, session };
    }

    return { relay, api, open, signedIn };
}
