//! Checked configuration → what each room takes. The only place that knows both.

use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret;

use crate::change::SyncId;
use crate::config::{self, Config, ValueSource};
use crate::daemon;
use crate::queue::{self, backoff, budget};
use crate::relay;
use crate::sink;
use crate::source::{self, SyncSource, UrlError, ValueSql};

/// A standby asks for the lease this often, so that a clean hand-over takes less than a second.
const CAMPAIGN_INTERVAL: Duration = Duration::from_millis(500);
/// Most rows of one fetch: a page that is decoded in milliseconds.
const FETCH_MAX: usize = 10_000;
/// Keys whose last content is remembered, so that an equal document is not billed again.
const SEEN_MAX: usize = 200_000;

/// Settings of the daemon.
///
/// # Errors
/// When the connection string says something that pg2kv does not know.
pub fn daemon(config: &Config) -> Result<daemon::Settings, UrlError> {
    Ok(daemon::Settings {
        relay: relay(config),
        source: source(&config.postgres, &config.lease)?,
        syncs: config
            .syncs
            .iter()
            .zip(sources(config))
            .map(|(sync, source)| daemon::SyncSpec {
                source,
                template: sync.template.clone(),
                namespace: sync.namespace_id.clone(),
            })
            .collect(),
        holder: config.lease.holder.clone(),
    })
}

/// Settings of the connection to Postgres.
///
/// # Errors
/// When the connection string says something that pg2kv does not know.
pub fn source(
    postgres: &config::Postgres,
    lease: &config::Lease,
) -> Result<source::Settings, UrlError> {
    let root: Option<&Path> = postgres.root_certificate.as_deref();
    let url = postgres.url.expose_secret();
    let (mut config, tls) = source::parse_url(url, root, postgres.allow_plaintext)?;
    if let Some(password) = &postgres.password {
        config.password(password.expose_secret());
    }
    Ok(source::Settings {
        config,
        tls,
        schema: postgres.schema.clone(),
        doorbell: postgres.doorbell,
        connect_timeout: postgres.connect_timeout,
        statement_timeout: postgres.statement_timeout,
        lease_ttl: lease.ttl,
        poll_interval: postgres.poll_interval,
    })
}

/// What each sync reads.
pub fn sources(config: &Config) -> Vec<SyncSource> {
    config
        .syncs
        .iter()
        .enumerate()
        .map(|(index, sync)| SyncSource {
            // The configuration allows far fewer syncs than u16::MAX.
            id: SyncId(u16::try_from(index).unwrap_or(u16::MAX)),
            name: sync.watch.sync.clone(),
            table: sync.watch.table.clone(),
            key_columns: sync.watch.key_columns.clone(),
            value: match &sync.value {
                ValueSource::Columns(columns) => ValueSql::Columns(columns.clone()),
                ValueSource::Expression(sql) => ValueSql::Expression(sql.clone()),
            },
            filter: sync.filter.clone(),
        })
        .collect()
}

/// Settings of the client of Workers KV.
pub fn kv(kv: &config::Kv) -> sink::setup::Settings {
    sink::setup::Settings {
        api_base_url: kv.api_base_url.clone(),
        account: kv.account_id.clone(),
        token: kv.token.clone(),
        connect_timeout: kv.connect_timeout,
        request_timeout: kv.request_timeout,
        proxy: kv.proxy.as_ref().map(|proxy| proxy.expose_secret().to_owned()),
        root_certificate: kv.root_certificate.clone(),
    }
}

fn relay(config: &Config) -> relay::Settings {
    let backoff = backoff::Settings { initial: config.retry.initial, max: config.retry.max };
    let queue = &config.queue;
    relay::Settings {
        queue: queue::Settings {
            quiet: queue.quiet,
            max_wait: queue.max_wait,
            key_interval: queue.key_interval,
            keys_max: queue.keys_max,
            leading: queue.leading,
            backoff,
        },
        backoff,
        budget: budget::Settings {
            requests_per_window: config.kv.requests_per_5min.unwrap_or(0),
            reserve_requests: config.kv.reserve_requests,
        },
        syncs: config.syncs.iter().map(|sync| sync.watch.sync.clone()).collect(),
        pairs_max: config.kv.pairs_max,
        body_max_bytes: config.kv.body_max_bytes,
        in_flight_max: config.kv.in_flight_max,
        late_write_window: config.retry.late_write_window,
        lease_ttl: config.lease.ttl,
        campaign_interval: CAMPAIGN_INTERVAL,
        poll_interval: config.postgres.poll_interval,
        linger: linger(queue.quiet),
        doorbell: config.postgres.doorbell,
        backfill_chunk: config.backfill.chunk,
        fetch_max: FETCH_MAX,
        grace: config.shutdown.grace,
        seen_max: SEEN_MAX,
    }
}

/// While changes keep coming the outbox is read this often: a part of the debounce that does not
/// show, and seldom enough to cost next to nothing.
fn linger(quiet: Duration) -> Duration {
    (quiet / 5).clamp(Duration::from_millis(2), Duration::from_millis(20))
}
