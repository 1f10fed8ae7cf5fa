// What the recipe leaves to the app: where the server is, and where the tokens are.

export const baseUrl = new URLSearchParams(location.search).get("server");
export const tokens = {};
