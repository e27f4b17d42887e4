// Draws the dashboard: node draw.ts PROMETHEUS FROM TO PICTURE, times in Unix seconds.
//
// A page with Grafana's own components asks Prometheus what the dashboard asks; headless Chromium opens
// it and takes the picture. It fails when a panel shows nothing or the page reports an error.

import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import { launch } from 'puppeteer-core';
import { build, type InlineConfig, preview } from 'vite';

const WIDTH = 1600;
/** Drawing everything takes some seconds; on a busy machine longer. */
const DEADLINE_MS = 120_000;

const [prometheus, from, to, picture] = process.argv.slice(2);
if (!prometheus || !from || !to || !picture) {
  console.error('usage: node draw.ts PROMETHEUS FROM TO PICTURE');
  process.exit(64);
}

const chromium = (process.env['PATH'] ?? '')
  .split(':')
  .flatMap((directory) => ['chromium', 'chromium-browser', 'google-chrome'].map((name) => `${directory}/${name}`))
  .find((path) => existsSync(path));
if (!chromium) {
  console.error('chromium is missing; `scripts/setup ops` installs it');
  process.exit(69);
}

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const config: InlineConfig = {
  root: here('render'),
  configFile: false,
  logLevel: 'warn',
  // Grafana's icons.
  publicDir: here('node_modules/@grafana/ui/dist/public'),
  cacheDir: here('node_modules/.vite'),
  build: {
    outDir: here('node_modules/.drawing'),
    emptyOutDir: true,
    minify: false,
    reportCompressedSize: false,
    chunkSizeWarningLimit: 100_000,
    // Where a package marks its files for React's server side, Rollup need not say so.
    rollupOptions: { onwarn: () => {} },
  },
  define: { 'process.env.NODE_ENV': '"production"' },
  preview: { host: '127.0.0.1', port: 0, open: false },
};

await build(config);
const server = await preview(config);
const url = new URL(server.resolvedUrls?.local[0] ?? '');
url.search = new URLSearchParams({ prometheus, from, to }).toString();

const browser = await launch({
  executablePath: chromium,
  args: ['--no-sandbox', '--disable-gpu', '--no-proxy-server', '--force-color-profile=srgb'],
  protocolTimeout: DEADLINE_MS,
});
try {
  const page = await browser.newPage();
  const errors: string[] = [];
  page.on('pageerror', (error) => errors.push(String(error)));
  await page.setViewport({ width: WIDTH, height: 1000 });
  await page.goto(url.href);
  await page.waitForSelector('[data-drawn="true"]', { timeout: DEADLINE_MS });
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  await page.setViewport({ width: WIDTH, height });
  const drawn = await page.evaluate(async () => {
    // Two frames after the last change of size, every canvas has been drawn.
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const titles = [...document.querySelectorAll('[data-testid="header-container"] h2, [data-testid="header-container"] h6')];
    return {
      panels: document.querySelectorAll('[data-panel]').length,
      empty: [...document.querySelectorAll('[data-empty]')].map((panel) => panel.getAttribute('data-empty')),
      cut: titles.filter((title) => title.scrollWidth > title.clientWidth).map((title) => title.textContent),
      charts: document.querySelectorAll('.uplot canvas').length,
    };
  });
  await page.screenshot({ path: picture as `${string}.png`, fullPage: true, optimizeForSpeed: false });
  if (errors.length > 0) throw new Error(errors.join('\n'));
  if (drawn.empty.length > 0) throw new Error(`nothing to see in: ${drawn.empty.join(', ')}`);
  if (drawn.cut.length > 0) throw new Error(`titles that do not fit: ${drawn.cut.join(', ')}`);
  if (drawn.panels < 30 || drawn.charts < 20) throw new Error(`not all was drawn: ${JSON.stringify(drawn)}`);
  console.log(JSON.stringify({ picture, ...drawn }));
} finally {
  await browser.close();
  await server.close();
}
