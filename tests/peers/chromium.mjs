// Starts the Chromium of this machine, with an empty profile and without talking to anybody else.

import { accessSync, constants } from "node:fs";
import { chromium } from "playwright-core";

export function launch(profile, viewport) {
  return chromium.launchPersistentContext(profile, {
    executablePath: program(["chromium", "chromium-browser", "google-chrome"]),
    headless: true,
    viewport,
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
}

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
