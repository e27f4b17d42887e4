// A Worker that personalises a page, and serves configuration and files, from what pg2kv keeps in KV.
//
// GET /              the page of a user
// GET /config/USER   the user's document as JSON
// GET /assets/PATH   the value of the key "assets/PATH", with its MIME type from metadata

import { read, Unavailable } from "./kv.js";
import { renderPage, type View } from "./page.js";
import { page, problem, stored } from "./reply.js";
import { decode, Malformed, parseDocument, parseUser, userId, userKey } from "./user.js";

interface Env {
  readonly KV: KVNamespace;
}

/** Why something stored cannot be shown: a status, and a sentence that says nothing of the inside. */
interface Failure {
  readonly status: number;
  readonly message: string;
}

export default {
  async fetch(request, { KV }): Promise<Response> {
    if (request.method !== "GET" && request.method !== "HEAD") {
      return problem(405, "only GET and HEAD are served", { allow: "GET, HEAD" });
    }
    const path = decode(new URL(request.url).pathname);
    if (path === null) return problem(400, "the path is not valid percent-encoding");
    if (path === "/") return start(request, KV);
    try {
      if (path.startsWith("/config/")) return await config(request, KV, path.slice("/config/".length));
      if (path.startsWith("/assets/")) return await asset(request, KV, path.slice(1));
    } catch (error) {
      const { status, message } = explain(error);
      return problem(status, message);
    }
    return problem(404, "there is no such page");
  },
} satisfies ExportedHandler<Env>;

/** A page for everybody, personalised where that is possible. */
async function start(request: Request, kv: KVNamespace): Promise<Response> {
  const nonce = crypto.randomUUID();
  const show = (status: number, view: View) => page(status, renderPage(view, nonce), nonce);
  const id = userId(request);
  if (id === null) return show(200, { user: null, notice: null });
  try {
    const found = await read(kv, userKey(id));
    if (found === null) return show(200, { user: null, notice: "We do not know this user." });
    return show(200, { user: parseUser(found.bytes), notice: null });
  } catch (error) {
    const { status, message } = explain(error);
    return show(status, { user: null, notice: message });
  }
}

async function config(request: Request, kv: KVNamespace, id: string): Promise<Response> {
  const found = await read(kv, userKey(id));
  if (found === null) return problem(404, "there is no such user");
  parseDocument(found.bytes); // Malformed is told, and not passed on.
  return stored(request, found, "private", "application/json");
}

async function asset(request: Request, kv: KVNamespace, key: string): Promise<Response> {
  const found = await read(kv, key);
  if (found === null) return problem(404, "there is no such file");
  return stored(request, found, "public", found.contentType);
}

/** The cause goes into the log; the client is told what it can use. */
function explain(error: unknown): Failure {
  console.error(error);
  if (error instanceof Unavailable) return { status: 503, message: "Settings cannot be read at the moment." };
  if (error instanceof Malformed) return { status: 502, message: "Settings are not in order." };
  return { status: 500, message: "Something went wrong." };
}
