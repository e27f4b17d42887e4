// Replies: their headers, and the conditions under which no body is needed. Pure.

import type { Stored } from "./kv.js";

/** A problem as JSON: a sentence for people, and never what the runtime said. */
export function problem(status: number, error: string, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify({ error }) + "\n", {
    status,
    headers: {
      "content-type": "application/json",
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
      ...headers,
    },
  });
}

/** A page made for one person. Only its own style sheet takes effect, and no script. */
export function page(status: number, html: string, nonce: string): Response {
  return new Response(html, {
    status,
    headers: {
      "content-type": "text/html; charset=utf-8",
      "cache-control": "private, no-store",
      "content-security-policy":
        `default-src 'none'; style-src 'nonce-${nonce}'; ` +
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
      "referrer-policy": "same-origin",
      "x-content-type-options": "nosniff",
    },
  });
}

/**
 * A value, byte for byte, or 304 where the client has it. `no-cache` lets a client keep it and has it
 * ask each time: with an ETag that costs a reply without a body, and a change is not seen later than
 * KV shows it.
 */
export function stored(request: Request, value: Stored, scope: "public" | "private", contentType: string): Response {
  const headers = new Headers({
    "cache-control": `${scope}, no-cache`,
    // Opened as a page of its own (HTML, SVG), a value may not act in the name of this site.
    "content-security-policy": "sandbox",
    "x-content-type-options": "nosniff",
  });
  if (value.etag !== null) {
    headers.set("etag", value.etag);
    if (has(request.headers.get("if-none-match"), value.etag)) return new Response(null, { status: 304, headers });
  }
  headers.set("content-type", contentType);
  return new Response(value.bytes, { headers });
}

/** Whether If-None-Match names this ETag, compared weakly: a proxy that compresses makes it weak. */
function has(condition: string | null, etag: string): boolean {
  const tags = (condition ?? "").split(",").map((tag) => tag.trim().replace(/^W\//, ""));
  return tags.includes(etag) || tags.includes("*");
}
