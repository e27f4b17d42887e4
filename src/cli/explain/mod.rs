//! `pg2kv explain`: one KV key, from its row to KV.

mod json;
mod words;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::args::ExplainArgs;
use super::output::{BAD, DIM, Failure, GOOD};
use crate::audit::Target;
use crate::audit::explain::{self, Explanation, Found};
use crate::change::KvName;
use crate::config;
use crate::daemon::SyncSpec;
use crate::document::Template;
use crate::sink::kv::KvClient;
use crate::source::audit::Auditor;

/// A key of one sync, explained.
struct Told<'a> {
    sync: &'a SyncSpec,
    explanation: Explanation,
}

/// A pair that no sync makes.
struct Stray {
    namespace: String,
    /// A sync made it under an earlier configuration, and the daemon is to delete it.
    retired: Option<String>,
    found: Found,
}

/// What does not depend on the key.
struct Frame<'a> {
    args: &'a ExplainArgs,
    /// After this long without an answer a request counts as lost.
    request_timeout: Duration,
}

pub(super) async fn execute(files: &[PathBuf], args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let name = KvName::new(args.key.as_str())
        .map_err(|poison| Failure::usage(format!("KEY cannot be used: {}", poison.detail)))?;
    let config = config::load(files, std::env::vars_os())?;
    let syncs = super::syncs(&config, args.sync.as_deref())?;
    let kv = super::kv_client(&config)?;
    let auditor = Auditor::connect(&config.source_settings()).await?;
    let mut told = Vec::new();
    for sync in &syncs {
        let target = Target {
            source: &sync.source,
            template: &sync.template,
            namespace: &sync.namespace,
        };
        if let Some(explanation) = explain::explain(&auditor, &kv, &target, &name).await? {
            told.push(Told { sync, explanation });
        }
    }
    let strays = if told.is_empty() {
        strays(&auditor, &kv, &syncs, &name).await?
    } else {
        Vec::new()
    };
    let frame = Frame {
        args,
        request_timeout: config.kv.request_timeout,
    };
    if args.json {
        let json = json::of(&frame, &name, &told, &strays);
        writeln!(anstream::stdout(), "{json}")?;
    } else {
        print(&frame, &name, &told, &strays)?;
    }
    let good = !told.is_empty()
        && told
            .iter()
            .all(|told| told.explanation.conclusion.is_good());
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Pairs of this name that no sync makes, in every namespace that has a sync.
async fn strays(
    auditor: &Auditor,
    kv: &KvClient,
    syncs: &[SyncSpec],
    name: &KvName,
) -> Result<Vec<Stray>, Failure> {
    let retired = auditor.all_retired().await?;
    let namespaces: BTreeSet<_> = syncs.iter().map(|sync| &sync.namespace).collect();
    let mut strays = Vec::new();
    // Any sync will do: only what the installation wrote is told from what others wrote.
    let Some(ownership) = syncs
        .first()
        .map(|sync| auditor.ownership(&sync.source.name))
    else {
        return Ok(strays);
    };
    for namespace in namespaces {
        let Some(found) = explain::find(kv, namespace, &ownership, name)
            .await
            .map_err(Failure::from)?
        else {
            continue;
        };
        let made_by = retired.iter().find(|retired| {
            let template = Template::parse(&retired.template, &retired.key_values);
            auditor.ownership(&retired.sync).wrote(found.mark)
                && retired.namespace == namespace.as_str()
                && template.is_ok_and(|template| template.reverse(name).is_some())
        });
        strays.push(Stray {
            namespace: namespace.as_str().to_owned(),
            retired: made_by.map(|retired| retired.sync.clone()),
            found,
        });
    }
    Ok(strays)
}

fn print(
    frame: &Frame<'_>,
    name: &KvName,
    told: &[Told<'_>],
    strays: &[Stray],
) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    for (i, told) in told.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        let rows = words::rows(frame, name, told);
        let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
        for (what, text) in &rows {
            for (i, line) in text.lines().enumerate() {
                let what = if i == 0 { *what } else { "" };
                writeln!(out, "{DIM}{what:<width$}{DIM:#}  {line}")?;
            }
        }
        let explanation = &told.explanation;
        let (sentence, help) = words::conclusion(frame, told);
        let mark = if explanation.conclusion.is_good() {
            format!("{GOOD}ok{GOOD:#}")
        } else {
            format!("{BAD}look{BAD:#}")
        };
        writeln!(out, "\n{mark}  {sentence}")?;
        if let Some(help) = help {
            writeln!(out, "      {DIM}help:{DIM:#} {help}")?;
        }
    }
    if told.is_empty() {
        for stray in strays {
            writeln!(
                out,
                "{DIM}namespace{DIM:#}  {}\n{DIM}KV       {DIM:#}  {}\n",
                stray.namespace,
                words::found(&stray.found)
            )?;
        }
        let (sentence, help) = words::nobodys(strays);
        writeln!(out, "{BAD}look{BAD:#}  {sentence}")?;
        writeln!(out, "      {DIM}help:{DIM:#} {help}")?;
    }
    Ok(())
}
