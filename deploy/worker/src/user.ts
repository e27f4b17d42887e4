// A user's document: where a request says whose, and what stands in it. Pure.

/** What the page needs to know of somebody. Nothing is known of a guest. */
export interface User {
  readonly name: string | null;
  readonly plan: string;
  readonly previewFeatures: boolean;
  /** Names of the flags that are on. */
  readonly flags: readonly string[];
}

/** A value is not the document that it should be. */
export class Malformed extends Error {
  override readonly name = "Malformed";
}

/** The KV key of a user: `key = "user:{id}"` in pg2kv's configuration. */
export function userKey(id: string): string {
  return `user:${id}`;
}

/** Whose page is wanted: `?user=`, else the header `x-user-id`, else the cookie `user`. */
export function userId(request: Request): string | null {
  return (
    new URL(request.url).searchParams.get("user") ||
    request.headers.get("x-user-id") ||
    cookie(request.headers.get("cookie") ?? "", "user") ||
    null
  );
}

/**
 * Reads the JSON that pg2kv wrote from a row. A column that is not published or is NULL has a
 * default; one of another type is an error, and not guessed at.
 *
 * @throws {Malformed}
 */
export function parseUser(bytes: ArrayBuffer): User {
  const document = parseDocument(bytes);
  return {
    name: member(document, "username", isString, null),
    plan: member(document, "plan", isString, "free"),
    previewFeatures: member(document, "preview_features_enabled", isBoolean, false),
    flags: Object.entries(member(document, "flags", isObject, {}))
      .filter(([, on]) => on === true)
      .map(([flag]) => flag),
  };
}

/**
 * Reads a JSON object, whatever its members are.
 *
 * @throws {Malformed}
 */
export function parseDocument(bytes: ArrayBuffer): object {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    // The parser's own message quotes the value, and this one goes into a log.
    throw new Malformed("not JSON");
  }
  if (!isObject(value)) throw new Malformed("not a JSON object");
  return value;
}

function member<T, D>(document: object, name: string, is: (value: unknown) => value is T, fallback: D): T | D {
  const value: unknown = Object.hasOwn(document, name) ? Reflect.get(document, name) : null;
  if (value === null) return fallback;
  if (!is(value)) throw new Malformed(`member ${name} has another type`);
  return value;
}

const isString = (value: unknown): value is string => typeof value === "string";
const isBoolean = (value: unknown): value is boolean => typeof value === "boolean";
const isObject = (value: unknown): value is object =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** A cookie's value; one that is wrongly encoded is none. */
function cookie(header: string, name: string): string | null {
  for (const pair of header.split(";")) {
    const [key, ...value] = pair.split("=");
    if (key?.trim() === name) return decode(value.join("=").trim());
  }
  return null;
}

/** Takes percent-encoding away; null where it is none. */
export function decode(text: string): string | null {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}
