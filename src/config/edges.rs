//! What the checked configuration means to the rooms at the edges.

use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::{Config, DatabaseConfig, Lease, Postgres, ValueSource};
use crate::change::SyncId;
use crate::queue::{self, backoff, budget};
use crate::source::password::PasswordFile;
use crate::source::{self, SyncSource, ValueSql};
use crate::{daemon, relay, sink};

/// A standby asks for the lease this often, so that a clean hand-over takes less than a second.
const CAMPAIGN_INTERVAL: Duration = Duration::from_millis(500);
/// Most rows of one fetch: a page that is decoded in milliseconds. More than a full request has pairs,
/// so that it is known whether that request would be the last.
const FETCH_MAX: usize = 12_000;
/// Keys whose last content is remembered, so that an equal document is not billed again.
const SEEN_MAX: usize = 100_000;

impl Config {
    /// What the daemon runs on.
    pub fn daemon_settings(&self) -> daemon::Settings {
        daemon::Settings {
            relay: self.relay_settings(),
            source: self.source_settings(),
            syncs: self
                .sync_sources()
                .into_iter()
                .zip(&self.syncs)
                .map(|(source, sync)| daemon::SyncSpec {
                    source,
                    template: sync.template.clone(),
                    namespace: sync.namespace_id.clone(),
                })
                .collect(),
            holder: self.lease.holder.clone(),
            log_keys: self.log.keys,
            check_interval: self.postgres.check_interval,
            recheck_after: self.audit.recheck_after,
        }
    }

    fn relay_settings(&self) -> relay::Settings {
        let backoff = backoff::Settings {
            initial: self.retry.initial,
            max: self.retry.max,
        };
        let queue = &self.queue;
        relay::Settings {
            queue: queue::Settings {
                quiet: queue.quiet,
                max_wait: queue.max_wait,
                grain: (queue.quiet / 2).min(LINGER_MAX),
                key_interval: queue.key_interval,
                keys_max: queue.keys_max,
                leading: queue.leading,
                backoff,
            },
            backoff,
            budget: budget::Settings {
                requests_per_window: self.kv.requests_per_5min.unwrap_or(0),
                reserve_requests: self.kv.reserve_requests,
            },
            syncs: self
                .syncs
                .iter()
                .map(|sync| sync.watch.sync.clone())
                .collect(),
            pairs_max: self.kv.pairs_max,
            body_max_bytes: self.kv.body_max_bytes,
            in_flight_max: self.kv.in_flight_max,
            late_write_window: self.retry.late_write_window,
            lease_ttl: self.lease.ttl,
            campaign_interval: CAMPAIGN_INTERVAL,
            poll_interval: self.postgres.poll_interval,
            linger: linger(queue.quiet),
            doorbell: self.postgres.doorbell,
            // A chunk waits for room for all of it.
            backfill_chunk: self.backfill.chunk.min(queue.keys_max),
            fetch_max: FETCH_MAX,
            grace: self.shutdown.grace,
            seen_max: SEEN_MAX,
            brake: relay::brake::Settings {
                share: self.brake.share,
                count: self.brake.count,
                window: self.brake.window,
            },
            audit: relay::audits::Settings {
                interval: self.audit.interval,
                page_interval: self.audit.page_interval,
            },
        }
    }

    /// How to reach Postgres.
    pub fn source_settings(&self) -> source::Settings {
        source_settings(&self.postgres, &self.lease)
    }

    /// How to reach Workers KV.
    pub fn sink_settings(&self) -> sink::setup::Settings {
        sink::setup::Settings {
            api_base_url: self.kv.api_base_url.clone(),
            account: self.kv.account_id.clone(),
            token: self.kv.token.clone(),
            connect_timeout: self.kv.connect_timeout,
            request_timeout: self.kv.request_timeout,
            proxy: self
                .kv
                .proxy
                .as_ref()
                .map(|proxy| proxy.expose_secret().to_owned()),
            root_certificate: self.kv.root_certificate.clone(),
        }
    }

    /// What each sync reads; a [`SyncId`] is the position in `syncs`.
    pub fn sync_sources(&self) -> Vec<SyncSource> {
        // The reader of `[sync]` refuses more syncs than a SyncId can count.
        (0..)
            .zip(&self.syncs)
            .map(|(id, sync)| SyncSource {
                id: SyncId(id),
                name: sync.watch.sync.clone(),
                table: sync.watch.table.clone(),
                key_columns: sync.watch.key_columns.clone(),
                value: match &sync.value {
                    ValueSource::Columns(columns) => ValueSql::Columns(columns.clone()),
                    ValueSource::Expression(sql) => ValueSql::Expression(sql.clone()),
                },
                filter: sync.filter.clone(),
                attributes: sync.attributes.clone(),
                collect: sync.collect.clone(),
                related: sync.watch.related.clone(),
                configured: sync.described().to_string(),
            })
            .collect()
    }
}

impl DatabaseConfig {
    /// How to reach Postgres.
    pub fn source_settings(&self) -> source::Settings {
        source_settings(&self.postgres, &self.lease)
    }
}

fn source_settings(postgres: &Postgres, lease: &Lease) -> source::Settings {
    source::Settings {
        config: postgres.connection.clone(),
        password: (postgres.password_file.clone().map(PasswordFile::Alone))
            .or_else(|| postgres.url_file.clone().map(PasswordFile::InUrl)),
        tls: postgres.tls.clone(),
        schema: postgres.schema.as_str().to_owned(),
        doorbell: postgres.doorbell,
        connect_timeout: postgres.connect_timeout,
        statement_timeout: postgres.statement_timeout,
        lease_ttl: lease.ttl,
        poll_interval: postgres.poll_interval,
    }
}

/// Longest time for which what comes one after the other is gathered.
const LINGER_MAX: Duration = Duration::from_millis(50);

/// While changes keep coming the outbox is read this often: a part of the debounce that does not
/// show, and seldom enough to cost next to nothing.
fn linger(quiet: Duration) -> Duration {
    (quiet / 2).clamp(Duration::from_millis(2), LINGER_MAX)
}
