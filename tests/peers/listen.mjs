// The loop that people write: LISTEN, and for each notification one write with Cloudflare's client.
//
// argument: JSON {"postgres", "base_url", "token", "account", "namespace"}
// stdout:   {} once it listens; it ends when its standard input does

import Cloudflare from "cloudflare";
import pg from "pg";

const { postgres, base_url, token, account, namespace } = JSON.parse(process.argv[2]);
const kv = new Cloudflare({ baseURL: base_url, apiToken: token }).kv.namespaces;
const client = new pg.Client({ connectionString: postgres });

await client.connect();
client.on("notification", ({ payload }) => {
  const { id, ...user } = JSON.parse(payload);
  kv.values
    .update(`node:${id}`, { account_id: account, namespace_id: namespace, value: JSON.stringify(user) })
    .catch((error) => console.error(error.message));
});
await client.query("listen users");
console.log("{}");
process.stdin.on("end", () => process.exit()).resume();
