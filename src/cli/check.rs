//! `pg2kv check`: one line for each thing that must be in order.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::output::{BAD, DIM, DOUBT, Failure, GOOD, count, without_hint};
use super::plan;
use crate::change::{Answer, NotSentReason, Outcome};
use crate::config::{self, Config};
use crate::relay::HoldReason;
use crate::sink::kv::KvClient;
use crate::sink::setup::NamespaceId;
use crate::source::audit::Auditor;
use crate::source::{self, Finding, Grade};

/// Most likely where an API other than Cloudflare's local simulator finds nothing at our path.
const NO_ACCOUNT: &str = "set kv.account_id, without which the path has none; `pg2kv emulator` takes any \
                          32 hexadecimal digits";

pub(super) async fn execute(files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let config = config::load(files, std::env::vars_os())?;
    let mut findings = vec![Finding {
        what: "configuration".to_owned(),
        grade: Grade::Fine,
        detail: format!(
            "{} ({})",
            count(config.syncs.len() as u64, "sync"),
            super::named(files)
        ),
        hint: None,
    }];
    findings.extend(source::check(&config.source_settings(), &config.sync_sources()).await);
    // Where the database does not answer, a finding says so already.
    findings.extend(plan::findings(&config).await.unwrap_or_default());
    findings.extend(workers_kv(&config).await);
    // Whatever does not answer has its finding.
    findings.extend(others(&config).await.unwrap_or_default());

    let mut out = anstream::stdout();
    for warning in &config.warnings {
        writeln!(out, "{DOUBT}warn{DOUBT:#}  {}", warning.what)?;
        writeln!(out, "      {DIM}where:{DIM:#} {}", warning.place)?;
    }
    let width = findings
        .iter()
        .map(|finding| finding.what.len())
        .max()
        .unwrap_or(0);
    for Finding {
        what,
        grade,
        detail,
        hint,
    } in &findings
    {
        let mark = match grade {
            Grade::Fine => format!("{GOOD}ok  {GOOD:#}"),
            Grade::Doubtful => format!("{DOUBT}warn{DOUBT:#}"),
            Grade::Bad => format!("{BAD}FAIL{BAD:#}"),
        };
        let detail = without_hint(detail, hint.as_deref());
        writeln!(out, "{mark}  {what:<width$}  {detail}")?;
        if let Some(hint) = hint {
            writeln!(out, "      {:width$}  {DIM}help:{DIM:#} {hint}", "")?;
        }
    }
    let failed = findings
        .iter()
        .filter(|finding| finding.grade == Grade::Bad)
        .count();
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "\n{} not in order", count(failed as u64, "thing"))?;
    Ok(ExitCode::FAILURE)
}

/// Token and namespaces, by the cheapest read of each namespace.
async fn workers_kv(config: &Config) -> Vec<Finding> {
    let client = match KvClient::new(config.sink_settings()) {
        Ok(client) => client,
        Err(error) => {
            let (detail, hint) = match error.to_string().split_once("; ") {
                Some((detail, hint)) => (detail.to_owned(), Some(hint.to_owned())),
                None => (error.to_string(), None),
            };
            return vec![Finding {
                what: "workers kv".to_owned(),
                grade: Grade::Bad,
                detail,
                hint,
            }];
        }
    };
    let mut namespaces: BTreeMap<&NamespaceId, Vec<&str>> = BTreeMap::new();
    for sync in &config.syncs {
        namespaces
            .entry(&sync.namespace_id)
            .or_default()
            .push(&sync.watch.sync);
    }
    let mut findings = Vec::new();
    for (namespace, syncs) in namespaces {
        let answer = client.probe(namespace).await;
        let mut finding = judge(namespace, &syncs.join(", "), &answer);
        if answer.outcome == Outcome::Unexpected && config.kv.account_id.is_none() {
            finding.hint = Some(NO_ACCOUNT.to_owned());
        }
        findings.push(finding);
    }
    findings
}

/// Syncs with pairs of another installation among the first names under their prefix.
async fn others(config: &Config) -> Result<Vec<Finding>, Failure> {
    let kv = super::kv_client(config)?;
    let auditor = Auditor::connect(&config.source_settings()).await?;
    let mut findings = Vec::new();
    for sync in config.daemon_settings().syncs {
        let name = &sync.source.name;
        let Ok(page) = kv.list(&sync.namespace, sync.template.prefix(), None).await else {
            continue;
        };
        let ownership = auditor.ownership(name);
        let (others, columns): (Vec<_>, Vec<_>) = page
            .pairs
            .into_iter()
            .filter_map(|listed| {
                let other = ownership.other(listed.mark)?;
                Some((other, sync.template.reverse(&listed.name)?))
            })
            .unzip();
        let Ok(keys) = auditor.keys_of(&sync.source, &columns).await else {
            continue;
        };
        let mut theirs = others.into_iter().zip(keys);
        if let Some((other, _)) = theirs.find(|(_, key)| key.is_some()) {
            findings.push(Finding {
                what: format!("names of {name}"),
                grade: Grade::Doubtful,
                detail: format!("installation {other} of pg2kv has pairs under them"),
                hint: Some(HoldReason::AnotherInstallation.hint().to_owned()),
            });
        }
    }
    Ok(findings)
}

/// What a probe says of token and namespace.
fn judge(namespace: &NamespaceId, syncs: &str, answer: &Answer) -> Finding {
    let hint = match &answer.outcome {
        Outcome::Written => None,
        Outcome::Unauthorized => Some(
            "make a token with \"Workers KV Storage: Edit\" for this account, and compare \
             kv.account_id",
        ),
        Outcome::NamespaceGone => Some(
            "`wrangler kv namespace list` prints the ids; correct namespace_id or kv.account_id",
        ),
        Outcome::NotSent(NotSentReason::Dns) => {
            Some("the host of kv.api_base_url must resolve from here: look at DNS")
        }
        Outcome::NotSent(NotSentReason::Connect) => Some(
            "the host of kv.api_base_url must be reachable from here: look at firewall, network \
             policy and kv.proxy",
        ),
        Outcome::NotSent(NotSentReason::Tls) => Some(
            "look at the clock of this machine, at its package ca-certificates and at \
             kv.root_certificate",
        ),
        Outcome::Throttled(_) | Outcome::QuotaExhausted => {
            Some("the daemon waits for it; other users of this token or account count too")
        }
        Outcome::Partial(_)
        | Outcome::Ambiguous(_)
        | Outcome::NotSent(NotSentReason::Fenced)
        | Outcome::Rejected
        | Outcome::Unexpected => Some("try again; look at kv.api_base_url where it stays so"),
    };
    Finding {
        what: format!("namespace of {syncs}"),
        grade: match hint {
            None => Grade::Fine,
            Some(_) => Grade::Bad,
        },
        detail: match hint {
            None => format!("{} answers, and takes the token", namespace.as_str()),
            Some(_) => format!("{}: {}", namespace.as_str(), answer.detail),
        },
        hint: hint.map(str::to_owned),
    }
}
