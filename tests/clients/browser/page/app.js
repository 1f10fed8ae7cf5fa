// The part that the recipe leaves to the app: the server's address, and the tokens.

export const baseUrl = new URLSearchParams(location.search).get("server");
export const tokens = {};
