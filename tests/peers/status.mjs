// A real browser (Chromium) that follows the status page until standard input ends.
//
// argv[2]: JSON {"profile": an empty directory}
// stdin:  a line for each command, done in this order: {"open": URL, "width": pixels, "scheme": "dark",
//         "until": a text that the verdict comes to hold, "trouble": one that a trouble comes to hold,
//         "screenshot": file}
// stdout: {"version"} once it is ready, then a line for each command: what the page shows

import { createInterface } from "node:readline";
import { launch } from "./chromium.mjs";

const { profile } = JSON.parse(process.argv[2]);
const context = await launch(profile, { width: 1000, height: 760 });
const page = context.pages()[0] ?? (await context.newPage());
const complaints = [];
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(String(error)));
/** Where the pages came from, and what they asked of anybody else. */
const own = [];
const elsewhere = [];
page.on("request", (request) => {
  if (!own.includes(new URL(request.url()).origin)) elsewhere.push(request.url());
});
console.log(JSON.stringify({ version: context.browser()?.version() ?? "unknown" }));

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.open) {
    own.push(new URL(command.open).origin);
    await page.goto(command.open);
  }
  if (command.width) await page.setViewportSize({ width: command.width, height: 760 });
  if (command.scheme) await page.emulateMedia({ colorScheme: command.scheme });
  if (command.until) {
    const verdict = page.locator("#verdict-title", { hasText: command.until });
    await verdict.waitFor({ timeout: 60_000 });
  }
  if (command.trouble) {
    const trouble = page.locator("#troubles-list li", { hasText: command.trouble });
    await trouble.waitFor({ timeout: 60_000 });
  }
  const texts = (selector) => page.locator(selector).allInnerTexts();
  const seen = {
    verdict: (await texts("#verdict"))[0],
    who: (await texts("#who"))[0],
    troubles: await texts("#troubles-list li"),
    hints: await texts("#troubles-list .hint"),
    syncs: await texts("#syncs tr"),
    recent: await texts("#recent li"),
    overflows: await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth),
    links: await tabbed(),
    elsewhere,
    complaints,
  };
  if (command.screenshot) await page.screenshot({ path: command.screenshot, fullPage: true });
  console.log(JSON.stringify(seen));
}
await context.close();

/** What the keyboard reaches, in its order. */
async function tabbed() {
  const reached = [];
  await page.evaluate(() => document.activeElement?.blur());
  for (let presses = 0; presses < 10; presses += 1) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => document.activeElement?.textContent?.trim() ?? "");
    if (reached.includes(at) || at.length > 40) break;
    reached.push(at);
  }
  return reached;
}
