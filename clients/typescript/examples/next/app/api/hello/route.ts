import { sessionOf } from "@sessiond/server/next";

export function GET(request: Request) {
    return Response.json({ hello: sessionOf(request.headers)?.userId });
}
