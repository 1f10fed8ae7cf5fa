import { sessionOf } from "@sessiond/server/next";
import { headers } from "next/headers";
import { Account } from "./account";

export default async function Page() {
    const session = sessionOf(await headers());
    return <main><h1>Hello, {session?.userId}!</h1><Account /></main>;
}
