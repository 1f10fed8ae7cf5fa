import { sessiondProxy } from "@sessiond/server/next";
import { NextResponse } from "next/server";

const { SESSIOND_URL = "", SESSIOND_PROJECT_ID = "" } = process.env;

export const proxy = sessiondProxy(NextResponse, { url: SESSIOND_URL, project: SESSIOND_PROJECT_ID, cookies: true, login: "/login" });

/** All but the login page, sessiond's own routes, and static files. */
export const config = { matcher: "/((?!login(?:/|$)|auth/|_next/|favicon\\.ico$).*)" };
