// Prometheus' answers as the data frames that Grafana's components take.

import { type DataFrame, type Field, FieldType, type Labels } from '@grafana/data';

import { dashboard } from '../dashboard.ts';

const page = new URLSearchParams(location.search);
const prometheus = page.get('prometheus') ?? '';

/** The time that is shown, in seconds since 1970. */
export const from = Number(page.get('from'));
export const to = Number(page.get('to'));

/** Points over the width of a panel. */
const POINTS = 240;
const step = Math.max(1, Math.round((to - from) / POINTS));

interface Series {
  metric: Labels;
  value?: [number, string];
  values?: [number, string][];
}

/** The expression with every variable of the dashboard filled in: everything is chosen. */
function filled(expr: string): string {
  const names = (dashboard.templating?.list ?? []).map((variable) => variable.name);
  return names
    .reduce((text, name) => text.replaceAll(`$${name}`, '.*'), expr)
    .replaceAll('$__rate_interval', `${Math.max(10, 4 * step)}s`)
    .replaceAll('$__interval', `${Math.max(5, step)}s`);
}

async function ask(path: string, parameters: Record<string, string>): Promise<Series[]> {
  const reply = await fetch(`${prometheus}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const body = await reply.json();
  if (body.status !== 'success') throw new Error(`${parameters['query']}: ${body.error}`);
  return body.data.result;
}

/** What a query returns, one series each. */
export function series(expr: string, instant: boolean): Promise<Series[]> {
  const query = filled(expr);
  if (instant) return ask('query', { query, time: String(to) });
  return ask('query_range', { query, start: String(from), end: String(to), step: String(step) });
}

/** The name of a series, as `legendFormat` says. */
function named(legend: string, labels: Labels): string {
  if (legend === '__auto') return labels['__name__'] ?? 'value';
  return legend.replaceAll(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? '');
}

/** One frame for each series, on the same moments; what is missing is null. */
export async function frames(targets: Record<string, unknown>[]): Promise<DataFrame[]> {
  const moments: number[] = [];
  for (let at = from; at <= to; at += step) moments.push(at);
  const answers = await Promise.all(
    targets.map(async (target) => {
      const instant = target['instant'] === true;
      const found = await series(String(target['expr']), instant);
      return found.map((one): DataFrame => {
        const samples = one.values ?? (one.value ? [one.value] : []);
        const known = new Map(samples.map(([at, text]) => [Math.round((at - from) / step), Number(text)]));
        const times = instant ? samples.map(([at]) => at * 1000) : moments.map((at) => at * 1000);
        const values = instant
          ? samples.map(([, text]) => Number(text))
          : moments.map((_, index) => finite(known.get(index)));
        const time: Field = { name: 'Time', type: FieldType.time, config: {}, values: times };
        const value: Field = {
          name: named(String(target['legendFormat']), one.metric),
          type: FieldType.number,
          config: {},
          labels: one.metric,
          values,
        };
        return { refId: String(target['refId']), length: times.length, fields: [time, value] };
      });
    }),
  );
  return answers.flat();
}

function finite(value: number | undefined): number | null {
  return value === undefined || !Number.isFinite(value) ? null : value;
}
