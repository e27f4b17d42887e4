// Drives a KV REST API with Cloudflare's official client.
//
// stdin:  JSON {"base_url", "token", "account", "namespace"}; the namespace exists and is empty
// stdout: JSON, what each call gave

import Cloudflare from "cloudflare";
import { readFileSync } from "node:fs";

const { base_url, token, account, namespace } = JSON.parse(readFileSync(0, "utf8"));
const client = new Cloudflare({ baseURL: base_url, apiToken: token, maxRetries: 0 });
const kv = client.kv.namespaces;
const account_id = account;
const seen = {};

/** The result, or the status and codes of the error. */
async function tried(call) {
  try {
    return await call;
  } catch (error) {
    return { status: error.status, codes: error.errors?.map((each) => each.code) };
  }
}

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

seen.created = await kv.create({ account_id, title: "from the client" });
seen.created_again = await tried(kv.create({ account_id, title: "from the client" }));
const created = seen.created.id;
seen.renamed = await kv.update(created, { account_id, title: "renamed" });
seen.got = await kv.get(created, { account_id });
seen.namespaces = (await all(kv.list({ account_id, per_page: 1 }))).map(({ title }) => title);
seen.deleted = await kv.delete(created, { account_id });
seen.got_deleted = await tried(kv.get(created, { account_id }));

const key = "cl/é%1 ?#";
seen.put = await kv.values.update(key, {
  account_id, namespace_id: namespace, value: "text", expiration_ttl: 3600,
  // As text: from an object the client would make a form field "metadata[a]", which the API ignores.
  metadata: JSON.stringify({ a: 1 }),
});
const read = await kv.values.get(key, { account_id, namespace_id: namespace });
seen.read = { text: await read.text(), expires: Number(read.headers.get("expiration")) > Date.now() / 1000 };
seen.metadata = await kv.metadata.get(key, { account_id, namespace_id: namespace });
seen.value_deleted = await kv.values.delete("none", { account_id, namespace_id: namespace });
seen.read_missing = await tried(kv.values.get("none", { account_id, namespace_id: namespace }));

const names = Array.from({ length: 2500 }, (_, index) => `bulk:${String(index).padStart(4, "0")}`);
const body = names.map((name) => ({ key: name, value: `value of ${name}`, metadata: { name } }));
seen.bulk_put = await kv.bulkUpdate(namespace, { account_id, body });
const listed = await all(kv.keys.list(namespace, { account_id, prefix: "bulk:" }));
seen.listed = { count: listed.length, in_order: listed.every(({ name }, index) => name === names[index]) };
seen.listed_first = listed[0];
seen.small_pages = (await all(kv.keys.list(namespace, { account_id, prefix: "bulk:00", limit: 10 }))).length;
seen.bulk_get = await kv.bulkGet(namespace, { account_id, keys: ["bulk:0001", "none"] });
seen.bulk_get_metadata = await kv.bulkGet(namespace, {
  account_id, keys: ["bulk:0002", "none"], withMetadata: true,
});
seen.put_too_soon = await tried(
  kv.values.update("bulk:0000", { account_id, namespace_id: namespace, value: "again" }),
);
seen.bulk_delete_too_soon = await kv.bulkDelete(namespace, { account_id, body: ["bulk:0000", "other"] });
seen.too_many = await tried(
  kv.bulkUpdate(namespace, { account_id, body: Array.from({ length: 10001 }, (_, n) => ({ key: `${n}`, value: "" })) }),
);
const stranger = new Cloudflare({ baseURL: base_url, apiToken: "another", maxRetries: 0 });
seen.another_token = await tried(stranger.kv.namespaces.bulkDelete(namespace, { account_id, body: ["a"] }));
seen.verified = await client.user.tokens.verify();

console.log(JSON.stringify(seen));
