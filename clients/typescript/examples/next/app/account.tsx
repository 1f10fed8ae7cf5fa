"use client";

import { Client } from "@sessiond/client";
import { SessiondProvider, useClient, useDevices, useSession } from "@sessiond/react";
import { useEffect, useState } from "react";

/** Only in the browser: on the server there is nobody to keep signed in. */
export function Account() {
    const [client, setClient] = useState<Client>();
    useEffect(() => {
        const client = new Client({ url: "/", cookies: true });
        client.onSignedOut(() => location.assign("/login"));
        setClient(client);
        return () => client.close();
    }, []);
    return client && <SessiondProvider client={client}><Devices /></SessiondProvider>;
}

function Devices() {
    const client = useClient();
    const session = useSession();
    const { devices, end } = useDevices();
    return (
        <section>
            <p>{session.status}</p>
            <ul>{devices.map(({ id, device_name }) => <li key={id}>{device_name} <button onClick={() => end(id)}>Sign out</button></li>)}</ul>
            <button id="sign-out" onClick={() => client.signOut()}>Sign out here</button>
        </section>
    );
}
