// What the dashboard shows: its panels, their queries, and what to make of them.

import {
  type AnnotationQuery,
  type Dashboard,
  DashboardCursorSync,
  VariableHide,
  VariableRefresh,
  type VariableModel,
  type VariableType,
} from '@grafana/schema';

import { DATASOURCE, graph, type Part, place, stat } from './panels.ts';

/** Every series of the installations that were chosen. A missing label `namespace` counts as any. */
const ALL = 'namespace=~"$namespace", job=~"$job"';
/** A line at 0 with this name where a query gives none, so that calm does not look like a failure. */
function calm(expr: string, label: string): string {
  return `${expr} or on () label_replace(vector(0), "${label}", "none", "", "")`;
}

/** Only of the process that leads. */
const LEADS = `and on (namespace, job, instance) (pg2kv_leader{${ALL}} == 1)`;

function rate(metric: string, by?: string): string {
  return `sum${by ? ` by (${by})` : ''} (rate(${metric}{${ALL}}[$__rate_interval]))`;
}

function quantile(share: number, metric: string): string {
  return `histogram_quantile(${share}, sum by (le) (rate(${metric}_bucket{${ALL}}[$__rate_interval])))`;
}

const glance: Part = {
  lines: [
    {
      height: 4,
      panels: [
        stat({
          title: 'Is KV fresh?',
          description:
            'Age of the oldest change that is not proven to be in KV. Yellow from a minute, red from five. Empty while nobody leads.',
          queries: [{ expr: `max(pg2kv_oldest_unwritten_change_age_seconds{${ALL}} ${LEADS})` }],
          unit: 's',
          decimals: 1,
          thresholds: ['green', [60, 'yellow'], [300, 'red']],
          otherwise: 'unknown',
        }),
        stat({
          title: 'Does it flow?',
          description: 'Pairs written to KV and deleted from it in a second.',
          queries: [{ expr: rate('pg2kv_pairs_written_total') }],
          unit: 'wps',
          decimals: 1,
          thresholds: ['blue'],
        }),
        stat({
          title: 'Time to KV, p99',
          description: 'From the commit in Postgres to the proof that KV has it: 99 of 100 changes took less.',
          queries: [{ expr: quantile(0.99, 'pg2kv_commit_to_written_seconds') }],
          unit: 's',
          thresholds: ['green', [10, 'yellow'], [60, 'red']],
          otherwise: 'no changes',
        }),
        stat({
          title: 'Leader',
          description: 'How many processes lead, in every installation that is chosen: one is right.',
          queries: [{ expr: `min(sum by (namespace, job) (pg2kv_leader{${ALL}}))` }],
          unit: 'none',
          thresholds: ['red', [1, 'green'], [2, 'red']],
          words: {
            '0': { text: 'none', color: 'red' },
            '1': { text: 'one', color: 'green' },
          },
          otherwise: 'unknown',
        }),
        stat({
          title: 'Sending',
          description: 'Whether anything keeps it from sending to KV. The panel "Trouble" says what.',
          queries: [{ expr: `max(pg2kv_sending_blocked{${ALL}})` }],
          unit: 'none',
          thresholds: ['green', [1, 'red']],
          words: {
            '0': { text: 'free', color: 'green' },
            '1': { text: 'blocked', color: 'red' },
          },
          otherwise: 'unknown',
        }),
        stat({
          title: 'Syncs in trouble',
          description: 'Syncs that are on hold, or whose triggers are not in order.',
          queries: [
            {
              expr: `count(max by (namespace, job, sync) (pg2kv_sync_on_hold{${ALL}}) == 1 or max by (namespace, job, sync) (pg2kv_triggers_faulty{${ALL}}) == 1) or vector(0)`,
            },
          ],
          unit: 'none',
          thresholds: ['green', [1, 'red']],
        }),
        stat({
          title: 'Dead letters',
          description: 'Keys that KV cannot take. `pg2kv dead-letters list` says why.',
          queries: [{ expr: `sum(pg2kv_dead_letters{${ALL}}) or vector(0)` }],
          unit: 'short',
          thresholds: ['green', [1, 'yellow']],
        }),
        stat({
          title: 'Alerts',
          description: 'Alerts of pg2kv that fire. Each has a runbook.',
          queries: [{ expr: 'count(ALERTS{alertname=~"Pg2kv.*", alertstate="firing"}) or vector(0)' }],
          unit: 'none',
          thresholds: ['green', [1, 'red']],
        }),
      ],
    },
    {
      height: 8,
      panels: [
        graph({
          title: 'Age of the oldest unwritten change',
          description: 'The one number to watch. While it stays low, KV says what Postgres says.',
          queries: [
            { expr: `max(pg2kv_oldest_unwritten_change_age_seconds{${ALL}} ${LEADS})`, legend: 'oldest change' },
          ],
          unit: 's',
          thresholds: ['transparent', [60, 'yellow'], [300, 'red']],
          areas: true,
          colors: { 'oldest change': 'blue' },
        }),
        graph({
          title: 'Changes in, pairs out',
          description:
            'Changes fetched from the outbox, and pairs written and deleted. Out may be far less than in: many changes of one key cost one write.',
          queries: [
            { expr: rate('pg2kv_changes_fetched_total'), legend: 'changes' },
            { expr: rate('pg2kv_pairs_written_total', 'op'), legend: '{{op}}' },
          ],
          unit: 'cps',
          colors: { changes: 'blue', put: 'green', delete: 'orange' },
        }),
        graph({
          title: 'Trouble',
          description: 'Above 0 for as long as it lasts: why nothing is sent, and syncs that need somebody.',
          queries: [
            { expr: calm(`max by (reason) (pg2kv_sending_blocked{${ALL}}) > 0`, 'reason'), legend: 'blocked: {{reason}}' },
            { expr: `sum(pg2kv_sync_on_hold{${ALL}})`, legend: 'syncs on hold' },
            { expr: `sum(pg2kv_triggers_faulty{${ALL}})`, legend: 'triggers faulty' },
            { expr: `1 - max(pg2kv_postgres_up{${ALL}})`, legend: 'Postgres away' },
          ],
          unit: 'none',
          decimals: 0,
          stepped: true,
        }),
      ],
    },
  ],
};

const capture: Part = {
  title: 'Capture: from the table to the daemon',
  lines: [
    {
      height: 8,
      panels: [
        graph({
          title: 'Changes recorded',
          description:
            'Rows fetched from the outbox; those of them that cost no write, because their key waited already; and rows of syncs that are not configured.',
          queries: [
            { expr: rate('pg2kv_changes_fetched_total'), legend: 'fetched' },
            { expr: rate('pg2kv_keys_coalesced_total'), legend: 'coalesced' },
            { expr: rate('pg2kv_changes_ignored_total'), legend: 'not configured' },
          ],
          unit: 'cps',
          colors: { fetched: 'blue', coalesced: 'purple', 'not configured': 'orange' },
        }),
        graph({
          title: 'Looks at the outbox',
          description: 'What made the daemon look: a ring of a writer, the fallback poll, more to fetch.',
          queries: [{ expr: rate('pg2kv_wakeups_total', 'cause'), legend: '{{cause}}' }],
          unit: 'ops',
          stacked: true,
        }),
        graph({
          title: 'Time from commit to KV',
          description: 'From the commit in Postgres to the proof that KV has it.',
          queries: [
            { expr: quantile(0.5, 'pg2kv_commit_to_written_seconds'), legend: 'p50' },
            { expr: quantile(0.9, 'pg2kv_commit_to_written_seconds'), legend: 'p90' },
            { expr: quantile(0.99, 'pg2kv_commit_to_written_seconds'), legend: 'p99' },
          ],
          unit: 's',
          colors: { p50: 'green', p90: 'yellow', p99: 'orange' },
        }),
      ],
    },
  ],
};

const queue: Part = {
  title: 'Queue: what waits in memory',
  lines: [
    {
      height: 8,
      panels: [
        graph({
          title: 'Keys in memory',
          description: 'Distinct keys that wait, that are on their way, and of which a write is in doubt.',
          queries: [
            { expr: `sum(pg2kv_queue_keys{${ALL}})`, legend: 'waiting' },
            { expr: `sum(pg2kv_in_flight_keys{${ALL}})`, legend: 'in flight' },
            { expr: `sum(pg2kv_doubt_keys{${ALL}})`, legend: 'in doubt' },
          ],
          unit: 'short',
          colors: { waiting: 'blue', 'in flight': 'green', 'in doubt': 'orange' },
        }),
        graph({
          title: 'Queue in use',
          description: 'Share of queue.keys_max. What does not fit waits in the outbox.',
          queries: [
            {
              expr: `max by (instance) (pg2kv_queue_keys{${ALL}} / pg2kv_queue_limit_keys{${ALL}})`,
              legend: '{{instance}}',
            },
          ],
          unit: 'percentunit',
          thresholds: ['transparent', [0.8, 'yellow']],
          areas: true,
        }),
        graph({
          title: 'Deletes held by the brake',
          description: 'Keys that would be deleted from KV and wait for `pg2kv approve-deletes`.',
          queries: [{ expr: `max by (sync) (pg2kv_deletes_held_keys{${ALL}})`, legend: '{{sync}}' }],
          unit: 'short',
        }),
      ],
    },
  ],
};

const kv: Part = {
  title: 'KV: from the daemon to the edge',
  lines: [
    {
      height: 8,
      panels: [
        graph({
          title: 'Requests by status',
          description: 'Bulk requests; "none" where no reply came.',
          queries: [{ expr: rate('pg2kv_kv_requests_total', 'status_class'), legend: '{{status_class}}' }],
          unit: 'reqps',
          stacked: true,
          colors: { '2xx': 'green', '4xx': 'orange', '5xx': 'red', none: 'purple' },
        }),
        graph({
          title: 'Time of a request',
          description: 'From sending a bulk request to its reply.',
          queries: [
            { expr: quantile(0.5, 'pg2kv_kv_request_duration_seconds'), legend: 'p50' },
            { expr: quantile(0.99, 'pg2kv_kv_request_duration_seconds'), legend: 'p99' },
          ],
          unit: 's',
          colors: { p50: 'green', p99: 'orange' },
        }),
        graph({
          title: 'Requests left',
          description:
            'Requests that may go now without touching the reserve, and all that may go in five minutes. When few are left, batches wait to grow fuller.',
          queries: [
            { expr: `max(pg2kv_budget_left_requests{${ALL}} ${LEADS})`, legend: 'left' },
            { expr: `max(pg2kv_budget_limit_requests{${ALL}})`, legend: 'limit' },
          ],
          unit: 'short',
          colors: { left: 'blue', limit: 'text' },
        }),
      ],
    },
    {
      height: 8,
      panels: [
        graph({
          title: 'Pairs written, by sync',
          description: 'Pairs proven written or deleted. Cloudflare bills each.',
          queries: [{ expr: rate('pg2kv_pairs_written_total', 'sync'), legend: '{{sync}}' }],
          unit: 'wps',
          stacked: true,
        }),
        graph({
          title: 'Pairs in a request',
          description: 'How full the batches are. Fuller ones cost fewer requests and more time.',
          queries: [
            { expr: quantile(0.5, 'pg2kv_batch_pairs'), legend: 'p50' },
            { expr: quantile(0.99, 'pg2kv_batch_pairs'), legend: 'p99' },
          ],
          unit: 'short',
          colors: { p50: 'green', p99: 'orange' },
        }),
        graph({
          title: 'Writes saved',
          description: 'Keys whose document was in KV already, so that no write was billed.',
          queries: [{ expr: rate('pg2kv_keys_unchanged_total', 'sync'), legend: '{{sync}}' }],
          unit: 'cps',
          stacked: true,
        }),
      ],
    },
    {
      height: 8,
      panels: [
        graph({
          title: 'Dead letters',
          description: 'Keys that KV cannot take. `pg2kv dead-letters list` says why.',
          queries: [{ expr: calm(`sum by (sync) (pg2kv_dead_letters{${ALL}})`, 'sync'), legend: '{{sync}}' }],
          unit: 'short',
          decimals: 0,
          stepped: true,
        }),
        graph({
          title: 'Backfill',
          description: 'Rows and names done, and about how many there are. 0 while none runs.',
          queries: [
            { expr: `sum(pg2kv_backfill_done_rows{${ALL}})`, legend: 'done' },
            { expr: `sum(pg2kv_backfill_estimate_rows{${ALL}})`, legend: 'of about' },
          ],
          unit: 'short',
          colors: { done: 'green', 'of about': 'text' },
        }),
        graph({
          title: 'Requests whose keys are sent again',
          description: 'By reason. A few are normal; many mean that KV, the token or the network is in trouble.',
          queries: [
            { expr: calm(`${rate('pg2kv_retries_total', 'reason')} > 0`, 'reason'), legend: '{{reason}}' },
          ],
          unit: 'reqps',
          stacked: true,
        }),
      ],
    },
  ],
};

const database: Part = {
  title: 'Database: what pg2kv costs, and what slows it',
  lines: [
    {
      height: 8,
      panels: [
        graph({
          title: 'Outbox',
          description: 'Rows that wait, dead ones that autovacuum has not removed, and unsettled claims.',
          queries: [
            { expr: `max(pg2kv_outbox_rows{${ALL}})`, legend: 'rows' },
            { expr: `max(pg2kv_outbox_dead_rows{${ALL}})`, legend: 'dead rows' },
            { expr: `max(pg2kv_claims{${ALL}})`, legend: 'claims' },
          ],
          unit: 'short',
          colors: { rows: 'blue', 'dead rows': 'orange', claims: 'green' },
        }),
        graph({
          title: 'Ages',
          description:
            'The oldest row of the outbox, and the oldest open transaction of the database. Old transactions keep dead rows from being removed.',
          queries: [
            { expr: `max(pg2kv_oldest_outbox_row_age_seconds{${ALL}})`, legend: 'outbox row' },
            { expr: `max(pg2kv_oldest_transaction_age_seconds{${ALL}})`, legend: 'transaction' },
          ],
          unit: 's',
          colors: { 'outbox row': 'blue', transaction: 'orange' },
        }),
        graph({
          title: 'Notification queue in use',
          description: 'Of the whole server. When it is full, every transaction that calls NOTIFY fails.',
          queries: [{ expr: `max(pg2kv_notification_queue_usage_ratio{${ALL}})`, legend: 'in use' }],
          unit: 'percentunit',
          max: 1,
          thresholds: ['transparent', [0.5, 'red']],
          areas: true,
          colors: { 'in use': 'blue' },
        }),
        graph({
          title: 'Failures',
          description: 'Statements that failed and sessions that were lost, by what they mean.',
          queries: [{ expr: rate('pg2kv_ledger_failures_total', 'kind'), legend: '{{kind}}' }],
          unit: 'ops',
          stacked: true,
        }),
      ],
    },
  ],
};

const leader: Part = {
  title: 'Leader',
  lines: [
    {
      height: 8,
      panels: [
        graph({
          title: 'Who leads',
          description: '1 for the process that leads. Where the lines cross, the leader has changed.',
          queries: [{ expr: `max by (instance) (pg2kv_leader{${ALL}})`, legend: '{{instance}}' }],
          unit: 'none',
          decimals: 0,
          stepped: true,
        }),
        graph({
          title: 'Epoch',
          description: 'Number of the leadership; it grows with every change of leader. 0 while nobody leads.',
          queries: [{ expr: `max by (namespace, job) (pg2kv_epoch{${ALL}})`, legend: '{{job}}' }],
          unit: 'none',
          decimals: 0,
          stepped: true,
        }),
        graph({
          title: 'Session with Postgres',
          description: '1 while the session of the process works.',
          queries: [{ expr: `max by (instance) (pg2kv_postgres_up{${ALL}})`, legend: '{{instance}}' }],
          unit: 'none',
          decimals: 0,
          stepped: true,
        }),
      ],
    },
  ],
};

const processes: Part = {
  title: 'Processes',
  lines: [
    {
      height: 8,
      panels: [
        graph({
          title: 'Memory',
          description: 'Resident memory.',
          queries: [{ expr: `max by (instance) (process_resident_memory_bytes{${ALL}})`, legend: '{{instance}}' }],
          unit: 'bytes',
        }),
        graph({
          title: 'CPU',
          description: 'Processors in use.',
          queries: [
            {
              expr: `max by (instance) (rate(process_cpu_seconds_total{${ALL}}[$__rate_interval]))`,
              legend: '{{instance}}',
            },
          ],
          unit: 'none',
          decimals: 2,
        }),
        graph({
          title: 'Open files',
          description: 'File descriptors, connections included.',
          queries: [{ expr: `max by (instance) (process_open_fds{${ALL}})`, legend: '{{instance}}' }],
          unit: 'short',
          decimals: 0,
        }),
        graph({
          title: 'Age of the loop',
          description: 'Time since the loop went round last. Above 15 s the process is stuck.',
          queries: [{ expr: `max by (instance) (pg2kv_loop_age_seconds{${ALL}})`, legend: '{{instance}}' }],
          unit: 's',
          thresholds: ['transparent', [15, 'red']],
          areas: true,
        }),
      ],
    },
  ],
};

function labels(name: string, label: string, of: string): VariableModel {
  return {
    type: 'query' as VariableType,
    name,
    label: name,
    hide: VariableHide.dontHide,
    datasource: DATASOURCE,
    query: { query: `label_values(${of}, ${label})`, refId: name },
    refresh: VariableRefresh.onTimeRangeChanged,
    multi: true,
    includeAll: true,
    allValue: '.*',
    current: { selected: true, text: ['All'], value: ['$__all'] },
    options: [],
  };
}

/** Grafana's types leave out what is particular to Prometheus. */
const changes: AnnotationQuery & Record<'expr' | 'titleFormat' | 'textFormat' | 'tagKeys', string> = {
  name: 'Changes of leader',
  datasource: DATASOURCE,
  enable: true,
  hide: false,
  iconColor: 'purple',
  // A process that leads and did not a moment ago.
  expr: `(pg2kv_leader{${ALL}} == 1) unless (pg2kv_leader{${ALL}} offset $__interval == 1)`,
  titleFormat: 'New leader',
  textFormat: '{{instance}} leads',
  tagKeys: 'instance',
};

/** The dashboard as Grafana reads it. */
export const dashboard: Dashboard = {
  uid: 'pg2kv',
  title: 'pg2kv',
  description: 'Is KV fresh, does it flow, what is wrong; then each part of the way, from the table to the edge.',
  tags: ['pg2kv', 'postgres', 'cloudflare'],
  editable: false,
  graphTooltip: DashboardCursorSync.Crosshair,
  refresh: '30s',
  schemaVersion: 39,
  time: { from: 'now-1h', to: 'now' },
  timezone: 'browser',
  links: [],
  annotations: {
    list: [
      changes,
    ],
  },
  templating: {
    list: [
      {
        type: 'datasource' as VariableType,
        name: 'datasource',
        label: 'datasource',
        hide: VariableHide.dontHide,
        query: 'prometheus',
        current: { text: '', value: '' },
        refresh: VariableRefresh.onDashboardLoad,
        options: [],
      },
      labels('namespace', 'namespace', 'pg2kv_build_info'),
      labels('job', 'job', 'pg2kv_build_info{namespace=~"$namespace"}'),
    ],
  },
  panels: place([glance, capture, queue, kv, database, leader, processes]),
};
