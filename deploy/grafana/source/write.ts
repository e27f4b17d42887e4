// Writes ../dashboard.json; with --check it says whether that is what the source makes.

import { readFileSync, writeFileSync } from 'node:fs';

import { dashboard } from './dashboard.ts';

const file = new URL('../dashboard.json', import.meta.url);
const text = `${JSON.stringify(dashboard, null, 2)}\n`;
if (!process.argv.includes('--check')) {
  writeFileSync(file, text);
} else if (readFileSync(file, 'utf8') !== text) {
  console.error('deploy/grafana/dashboard.json is not what its source makes: run `make dashboard`');
  process.exit(1);
}
