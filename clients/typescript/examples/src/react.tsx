// A page with React. The page that loads it sets `window.sessiondUrl`.

import { Client } from "@sessiond/client";
import { SessiondProvider, useClient, useDevices, useSession } from "@sessiond/react";
import { createRoot } from "react-dom/client";

declare global {
    interface Window {
        sessiondUrl: string;
    }
}

const client = new Client({ url: window.sessiondUrl });

function Login() {
    const client = useClient();
    const login = async () => {
        const body = JSON.stringify({ user: "ada" });
        const response = await fetch("/login", { method: "POST", body, headers: { "content-type": "application/json" } });
        await client.signIn(await response.json());
    };
    return <button onClick={login}>Sign in as ada</button>;
}

function Devices() {
    const { devices, hasMore, error, end, endOthers, more } = useDevices();
    return (
        <section>
            <h2>Devices</h2>
            {error && <p role="alert">{error.message}</p>}
            <ul>
                {devices.map((device) => (
                    <li key={device.id}>
                        {device.device_name ?? "Unnamed device"} {device.is_current_session && <b>this device</b>}{" "}
                        <button onClick={() => end(device.id).catch(() => {})}>Sign out</button>
                    </li>
                ))}
            </ul>
            {hasMore && <button onClick={more}>More</button>}
            <button onClick={() => endOthers().catch(() => {})}>Sign out everywhere else</button>
        </section>
    );
}

function App() {
    const session = useSession();
    if (session.status === "signed-out") return <Login />;
    return (
        <main>
            <p>Hello, {session.userId ?? "…"}!</p>
            {session.status === "unknown" && <p role="status">The server cannot be reached at the moment.</p>}
            <Devices />
        </main>
    );
}

createRoot(document.getElementById("root")!).render(<SessiondProvider client={client}><App /></SessiondProvider>);
