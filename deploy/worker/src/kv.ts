// What pg2kv stored: how it is asked for, and what its metadata says. Knows nothing of users or pages.

/**
 * How long a location may answer from its own copy, in seconds, whether it found the key or not.
 * It bounds how late a change is seen there. Workers KV takes 30 and more; 60 is its own default.
 * Longer means fewer slow reads of rarely used keys, and changes that are seen later.
 */
export const CACHE_TTL_SECONDS = 60;

/** Longest key that Workers KV knows. It refuses longer ones with an exception. */
const KEY_MAX_BYTES = 512;

/** The Content-Type of a value without one, or with one that is none. */
const ANY_TYPE = "application/octet-stream";
const MIME_TYPE = /^[\w.+-]+\/[\w.+-]+(?:\s*;[\x20-\x7e]*)?$/;
/** Content hash, installation and sync: what pg2kv writes into the metadata of each pair. */
const MARK = /^([0-9a-f]{32})\.[0-9a-f]{12}\.[0-9a-f]{8}$/;

/** A value as it is in KV, byte for byte. */
export interface Stored {
  readonly bytes: ArrayBuffer;
  readonly contentType: string;
  /** From pg2kv's content hash; null where somebody else wrote the value. */
  readonly etag: string | null;
}

/** KV did not answer. Its own message stays in `cause`: it is for the log. */
export class Unavailable extends Error {
  override readonly name = "Unavailable";
}

/**
 * The value of a key, or null where there is none.
 *
 * @throws {Unavailable}
 */
export async function read(kv: KVNamespace, key: string): Promise<Stored | null> {
  if (new TextEncoder().encode(key).length > KEY_MAX_BYTES) return null;
  const { value, metadata } = await ask(kv, key);
  if (value === null) return null;
  const type = member(metadata, "content_type");
  const hash = MARK.exec(member(metadata, "pg2kv") ?? "")?.[1];
  return {
    bytes: value,
    contentType: type !== null && MIME_TYPE.test(type) ? type : ANY_TYPE,
    etag: hash === undefined ? null : `"${hash}"`,
  };
}

async function ask(kv: KVNamespace, key: string): Promise<KVNamespaceGetWithMetadataResult<ArrayBuffer, unknown>> {
  try {
    return await kv.getWithMetadata(key, { type: "arrayBuffer", cacheTtl: CACHE_TTL_SECONDS });
  } catch (cause) {
    throw new Unavailable("KV cannot be read", { cause });
  }
}

/** A member of metadata that is text. Metadata may be any JSON. */
function member(metadata: unknown, name: string): string | null {
  if (typeof metadata !== "object" || metadata === null) return null;
  const value: unknown = Reflect.get(metadata, name);
  return typeof value === "string" ? value : null;
}
