//! What the checked configuration means to the rooms at the edges.

use secrecy::ExposeSecret as _;

use super::{Config, DatabaseConfig, Lease, Postgres, ValueSource};
use crate::change::SyncId;
use crate::sink;
use crate::source::{self, SyncSource, ValueSql};

impl Config {
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
        tls: postgres.tls.clone(),
        schema: postgres.schema.as_str().to_owned(),
        doorbell: postgres.doorbell,
        connect_timeout: postgres.connect_timeout,
        statement_timeout: postgres.statement_timeout,
        lease_ttl: lease.ttl,
        poll_interval: postgres.poll_interval,
    }
}
