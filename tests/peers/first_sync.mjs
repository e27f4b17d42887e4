// Writes every user to KV once, the way of Cloudflare's example "distributed configuration": read all
// rows, make a list of pairs, write it. The example sends the list in one request, which fails from
// 10,001 users on; this one sends what a request may hold, request after request.
//
// argument: JSON {"database", "base_url", "token", "account", "namespace"}

import Cloudflare from "cloudflare";
import pg from "pg";

const { database, base_url, token, account, namespace } = JSON.parse(process.argv[2]);
const PAIRS_MAX = 10_000;

const db = new pg.Client({ connectionString: database });
await db.connect();
const { rows } = await db.query("select id, preview_features_enabled from users");
await db.end();

const pairs = rows.map((user) => ({
  key: user.id,
  value: JSON.stringify({ preview_features_enabled: user.preview_features_enabled }),
}));
const kv = new Cloudflare({ baseURL: base_url, apiToken: token }).kv.namespaces;
for (let sent = 0; sent < pairs.length; sent += PAIRS_MAX) {
  const body = pairs.slice(sent, sent + PAIRS_MAX);
  const result = await kv.bulkUpdate(namespace, { account_id: account, body });
  if (result.unsuccessful_keys?.length) throw new Error(`not written: ${result.unsuccessful_keys.length}`);
}
