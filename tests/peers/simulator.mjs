// Cloudflare's own local simulator (Miniflare), serving its KV REST API until standard input ends.
//
// argv[2]: JSON {"kv": {BINDING: namespace id}, "script"?: text of a Worker, "around"?: text of a
//          Worker that gets the requests instead and imports the first one as "./script.mjs",
//          "date"?: compatibility date, "persist"?: directory}
// stdout: one line {"worker": URL, "api": URL}

import { convertV4MiniflareOptions, Miniflare } from "miniflare";

const { kv, script, around, date, persist } = JSON.parse(process.argv[2]);
const idle = 'export default { fetch() { return new Response("no Worker", { status: 404 }); } };';
const module = (path, contents) => ({ type: "ESModule", path, contents });

const options = convertV4MiniflareOptions({
  name: "worker",
  host: "127.0.0.1",
  port: 0,
  cf: false,
  telemetry: { enabled: false },
  unsafeLocalExplorer: true,
  modulesRoot: "/",
  modules: [...(around ? [module("/around.mjs", around)] : []), module("/script.mjs", script ?? idle)],
  compatibilityDate: date ?? "2026-04-01",
  kvNamespaces: kv,
});
const simulator = new Miniflare(persist ? { ...options, resourcePersistencePath: persist } : options);
const worker = new URL(await simulator.ready);
const api = new URL("/cdn-cgi/local/explorer/api", worker);
console.log(JSON.stringify({ worker: worker.origin, api: api.href }));

process.stdin.resume();
process.stdin.on("end", async () => {
  await simulator.dispose();
  process.exit(0);
});
