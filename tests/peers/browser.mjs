// A real browser (Chromium) that looks at the Worker's page until standard input ends.
//
// argv[2]: JSON {"profile": an empty directory}
// stdin:  a line for each command: {"open": URL}, {"reload": true} or {"screenshot": file}
// stdout: {"version"} once it is ready, then a line for each command: what the page shows

import { accessSync, constants } from "node:fs";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const { profile } = JSON.parse(process.argv[2]);
const context = await chromium.launchPersistentContext(profile, {
  executablePath: program(["chromium", "chromium-browser", "google-chrome"]),
  headless: true,
  viewport: { width: 800, height: 330 },
  args: [
    // It sees pages of ours only, and has to run as root in a container.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const page = context.pages()[0] ?? (await context.newPage());
/** What the browser complained of since the last command: refused styles, failed scripts. */
let complaints = [];
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(String(error)));
let status = null;
console.log(JSON.stringify({ version: context.browser()?.version() ?? "unknown" }));

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.open) status = (await page.goto(command.open)).status();
  if (command.reload) status = (await page.reload()).status();
  if (command.screenshot) await page.screenshot({ path: command.screenshot });
  const text = async (selector) => (await page.locator(selector).allInnerTexts())[0] ?? null;
  console.log(
    JSON.stringify({
      status,
      plan: await text("#plan"),
      heading: await text("#banner h1"),
      notice: await text("#notice"),
      preview: (await page.locator("#banner.preview").count()) === 1,
      features: await page.locator("#features li").allInnerTexts(),
      styled: (await page.locator("#banner").evaluate((banner) => getComputedStyle(banner).borderRadius)) !== "0px",
      complaints,
    }),
  );
  complaints = [];
}
await context.close();

function program(names) {
  for (const directory of (process.env.PATH ?? "").split(":")) {
    for (const name of names) {
      const path = `${directory}/${name}`;
      try {
        accessSync(path, constants.X_OK);
        return path;
      } catch {
        // Not here.
      }
    }
  }
  throw new Error(`no browser in PATH; install one of: ${names.join(", ")}`);
}
