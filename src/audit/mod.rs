//! Compares KV with Postgres: lists the names under a sync's prefix, walks its table, and tells what
//! differs for no reason. Writes to neither.
//!
//! Names that the sync did not write are foreign: counted, and nobody's business. Names that it wrote
//! and that none of its keys makes any more are orphans.
//!
//! **A difference is drift only when it is seen twice.** Both sides move while they are compared. So
//! where a first round finds differences, a second one looks again, and what does not show the same
//! two contents in both, or has a change waiting after either, was on its way. Workers KV lists a
//! write after up to a minute: a key that was written just before may count as stale once.
//!
//! Memory: 17 bytes for each pair of a sync, and about 150 for each that differs, of at most 100,000.
//! Where more differ they are only counted. Documents are rendered and dropped in chunks.

mod compare;
pub mod explain;

pub use compare::Drift;
use compare::{Differences, Judged, Listing, Pairs, is_among};

use crate::change::owner::{InstallationId, Mark, Ownership};
use crate::change::{Answer, ContentHash, Key, KvName, Outcome, Rendered};
use crate::document::{self, Template};
use crate::sink::kv::KvClient;
use crate::sink::reply::ListPage;
use crate::sink::setup::NamespaceId;
use crate::source::SyncSource;
use crate::source::audit::Auditor;

/// Keys walked at once.
const CHUNK: usize = 1_000;
/// Times that a page is asked for before its failure counts. It changes nothing, so asking again
/// is safe.
const ATTEMPTS: u32 = 4;

/// Says when requests to KV may go: they take from what one token may send.
pub trait Pace {
    /// Waits until the next page may be listed; `failed` is how the one before came to nothing.
    fn page(&mut self, failed: Option<&Answer>) -> impl Future<Output = ()> + Send;

    /// Waits before what differed is looked at again.
    fn again(&mut self) -> impl Future<Output = ()> + Send;
}

/// What is compared.
pub struct Target<'a> {
    /// The rows.
    pub source: &'a SyncSource,
    /// The names of the pairs.
    pub template: &'a Template,
    /// Where the pairs stand.
    pub namespace: &'a NamespaceId,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Documents that stand in KV as the rows say.
    pub equal: u64,
    /// Documents that KV lacks.
    pub missing: u64,
    /// Documents that KV lacks because their time after the last write is over, as far as can be
    /// told. No drift: to write them again would make them eternal.
    pub expired: u64,
    /// Documents that stand in KV with another content.
    pub stale: u64,
    /// Pairs of pg2kv that no row makes.
    pub orphaned: u64,
    /// Pairs of this sync that no key makes any more: the types of its columns were others.
    pub unmade: u64,
    /// Pairs under the prefix that are not this sync's.
    pub foreign: u64,
    /// Another installation of pg2kv that wrote some of those, if one did.
    pub other: Option<InstallationId>,
    /// Documents that are missing or stale because they have a dead letter.
    pub dead_lettered: u64,
    /// Documents that differ because a change is on its way.
    pub pending: u64,
    /// A walk over all rows waits or is under way, or more changes are on their way than can be told
    /// apart: every difference counts as pending.
    pub undecided: bool,
    /// The keys that drifted; none where they are more than 100,000.
    pub keys: Vec<(Key, Drift)>,
}

impl Report {
    /// Documents that differ for no reason.
    pub fn drifted(&self) -> u64 {
        self.missing + self.stale + self.orphaned + self.unmade
    }

    /// Whether so many drifted that their keys are not known.
    pub fn is_cut(&self) -> bool {
        self.drifted() - self.unmade > self.keys.len() as u64
    }
}

/// How far a comparison is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether differences are looked at again.
    pub again: bool,
    /// Names listed in this round.
    pub names: u64,
    /// Rows rendered in this round.
    pub rows: u64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres.
    #[error(transparent)]
    Source(#[from] crate::source::Error),
    /// Workers KV.
    #[error("listing the names in Workers KV: {}", .0.detail)]
    Kv(Answer),
    /// Workers KV, asked for one pair.
    #[error("reading the pair in Workers KV: {}", .0.detail)]
    Pair(Answer),
}

/// Compares one sync; `tell` hears of each page and chunk.
///
/// # Errors
/// Postgres or Workers KV does not answer as it should; then nothing is known.
pub async fn compare(
    auditor: &Auditor,
    kv: &KvClient,
    target: &Target<'_>,
    pace: impl Pace,
    tell: impl FnMut(Progress),
) -> Result<Report, Error> {
    let mut audit = Audit {
        auditor,
        kv,
        ownership: auditor.ownership(&target.source.name),
        target,
        tell,
        pace,
        progress: Progress::default(),
        report: Report::default(),
    };
    audit.run().await?;
    Ok(audit.report)
}

struct Audit<'a, P, T> {
    auditor: &'a Auditor,
    kv: &'a KvClient,
    target: &'a Target<'a>,
    ownership: Ownership,
    tell: T,
    pace: P,
    progress: Progress,
    report: Report,
}

impl<P: Pace, T: FnMut(Progress)> Audit<'_, P, T> {
    async fn run(&mut self) -> Result<(), Error> {
        let before = self.auditor.waiting(self.target.source).await?;
        let (left, mut first) = self.first_round().await?;
        if first.is_cut() {
            return self.judge_by_numbers(first, before).await;
        }
        self.drop_pending(&mut first).await?;
        if self.report.undecided || (left.is_empty() && first.is_empty()) {
            return Ok(());
        }
        self.pace.again().await;
        let mut drifted = self.second_round(&left, &first).await?;
        drop((left, first));
        self.drop_pending(&mut drifted).await?;
        let mut dead = 0;
        self.auditor
            .letters(self.target.source, |key| {
                dead += u64::from(drifted.remove(key));
            })
            .await?;
        self.report.dead_lettered = dead;
        self.conclude(drifted);
        Ok(())
    }

    fn conclude(&mut self, drifted: Differences) {
        let report = &mut self.report;
        report.missing = drifted.count(Drift::Missing);
        report.stale = drifted.count(Drift::Stale);
        report.orphaned = drifted.count(Drift::Orphaned);
        if !drifted.is_cut() {
            report.keys = drifted.into_keys();
        }
    }

    /// More differ than can be told apart. If changes on their way and dead letters do not explain
    /// most of it, the two have drifted, and no key is needed to mend that. A backlog may have drained
    /// since its pairs were listed: what waited `before` that counts as well.
    async fn judge_by_numbers(&mut self, first: Differences, before: u64) -> Result<(), Error> {
        let source = self.target.source;
        let (mut waiting, mut dead) = (0_u64, 0_u64);
        let every = self.auditor.pending(source, |_| waiting += 1).await?;
        self.auditor.letters(source, |_| dead += 1).await?;
        if every || before.max(waiting) + dead > first.len() / 2 {
            self.report.undecided = true;
            self.report.pending = first.len();
        } else {
            self.conclude(first);
        }
        Ok(())
    }

    /// Everything, once. The listing that comes back holds what no document has taken out.
    async fn first_round(&mut self) -> Result<(Listing, Differences), Error> {
        let mut pairs = Pairs::default();
        let mut cursor = None;
        loop {
            let page = self.page(cursor.as_deref()).await?;
            for pair in page.pairs {
                self.note_other(pair.mark);
                match self.ownership.hash(pair.mark) {
                    Some(hash) if self.target.template.reverse(&pair.name).is_some() => {
                        pairs.push(&pair.name, hash);
                    }
                    _ => self.report.foreign += 1,
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let mut listing = pairs.listing();
        let mut differences = Differences::default();
        let (mut equal, mut expired) = (0, 0);
        self.walk(|key, rendered| match listing.judge(rendered) {
            Judged::Equal => equal += 1,
            Judged::Different(difference) => differences.insert(key, difference),
            Judged::MayHaveExpired => expired += 1,
            Judged::Unpublished => {}
        })
        .await?;
        self.report.equal = equal;
        self.report.expired = expired;
        listing.keep_left();
        Ok((listing, differences))
    }

    /// Looks again at what differed, and at names that no document took out: `left`.
    async fn second_round(
        &mut self,
        left: &Listing,
        first: &Differences,
    ) -> Result<Differences, Error> {
        self.progress = Progress {
            again: true,
            ..Progress::default()
        };
        let mut drifted = Differences::default();
        let (mut pairs, names) = (Pairs::default(), first.names());
        let mut cursor = None;
        loop {
            let page = self.page(cursor.as_deref()).await?;
            let mut unclaimed = Vec::new();
            for pair in page.pairs {
                let Some(hash) = self.ownership.hash(pair.mark) else {
                    continue;
                };
                let Some(columns) = self.target.template.reverse(&pair.name) else {
                    continue;
                };
                if is_among(&names, &pair.name) {
                    pairs.push(&pair.name, hash);
                }
                if left.holds(&pair.name, hash) {
                    let own = self.ownership.wrote(pair.mark);
                    unclaimed.push((pair.name, hash, columns, own));
                }
            }
            self.orphans(unclaimed, &mut drifted).await?;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        if first.is_empty() {
            return Ok(drifted);
        }
        let mut listing = pairs.listing();
        let (mut equal, mut moving) = (0, 0);
        self.walk(|key, rendered| {
            let Some(before) = first.get(key) else { return };
            match listing.judge(rendered) {
                Judged::Equal => equal += 1,
                Judged::Different(now) if now == before => drifted.insert(key, now),
                Judged::Different(_) => moving += 1,
                Judged::Unpublished | Judged::MayHaveExpired => {}
            }
        })
        .await?;
        self.report.equal += equal;
        self.report.pending += moving;
        Ok(drifted)
    }

    /// Which of these names the rows, read now, make no pair for.
    async fn orphans(
        &mut self,
        unclaimed: Vec<(KvName, ContentHash, Vec<String>, bool)>,
        drifted: &mut Differences,
    ) -> Result<(), Error> {
        if unclaimed.is_empty() {
            return Ok(());
        }
        let mut columns = Vec::with_capacity(unclaimed.len());
        let mut pairs = Vec::with_capacity(unclaimed.len());
        for (name, hash, values, own) in unclaimed {
            columns.push(values);
            pairs.push((name, hash, own));
        }
        let keys = self.auditor.keys_of(self.target.source, &columns).await?;
        let (mut found, mut theirs) = (Vec::new(), Vec::new());
        for (key, pair) in keys.into_iter().zip(pairs) {
            match key {
                Some(key) => {
                    found.push(key);
                    theirs.push(pair);
                }
                // No row can have a key with this text any more.
                None if pair.2 => self.report.unmade += 1,
                None => self.report.foreign += 1,
            }
        }
        let mut theirs = theirs.into_iter();
        let (mut unmade, mut foreign) = (0, 0);
        self.render(&found, |key, rendered| {
            let Some((name, hash, own)) = theirs.next() else {
                return;
            };
            let of_no_key = if own { &mut unmade } else { &mut foreign };
            match rendered {
                Some(Rendered::Delete(its)) if *its == name => {
                    drifted.insert_orphan(key, &name, hash);
                }
                // The row makes another name: `user:007` is not the pair of 7.
                Some(Rendered::Delete(_)) => *of_no_key += 1,
                Some(Rendered::Put(document)) if document.name != name => *of_no_key += 1,
                // The row is here by now, or cannot be rendered: the walk has seen it.
                Some(
                    Rendered::Put(_) | Rendered::Poison(_) | Rendered::Nothing | Rendered::Large,
                )
                | None => {}
            }
        })
        .await?;
        self.report.unmade += unmade;
        self.report.foreign += foreign;
        Ok(())
    }

    fn note_other(&mut self, mark: Option<Mark>) {
        let other = self.ownership.other(mark);
        self.report.other = self.report.other.or(other);
    }

    async fn drop_pending(&mut self, differences: &mut Differences) -> Result<(), Error> {
        let mut pending = 0;
        let every = self
            .auditor
            .pending(self.target.source, |key| {
                pending += u64::from(differences.remove(key));
            })
            .await?;
        if every {
            self.report.undecided = true;
            pending += differences.clear();
        }
        self.report.pending += pending;
        Ok(())
    }

    /// Renders every row in the order of the keys.
    async fn walk(&mut self, mut see: impl FnMut(&Key, Option<&Rendered>)) -> Result<(), Error> {
        let mut after: Option<String> = None;
        loop {
            let walked = self
                .auditor
                .walk(self.target.source, after.as_deref(), CHUNK)
                .await?;
            self.render(&walked.keys, &mut see).await?;
            self.progress.rows += walked.keys.len() as u64;
            (self.tell)(self.progress);
            after = walked.position;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Renders these keys as the daemon does. `None` is a row that cannot be read.
    async fn render(
        &self,
        keys: &[Key],
        mut see: impl FnMut(&Key, Option<&Rendered>),
    ) -> Result<(), Error> {
        let mut rest = keys;
        while !rest.is_empty() {
            let rows = self.auditor.read(self.target.source, rest).await?;
            let read = rows.len().max(1);
            for (key, row) in rest.iter().zip(rows) {
                let owner = self.ownership.owner;
                let rendered = match document::unreadable(key) {
                    Some(poison) => Some(Rendered::Poison(poison)),
                    None => row.map(|row| {
                        document::render(self.target.template, owner, &row.columns, row.draft)
                    }),
                };
                see(key, rendered.as_ref());
            }
            rest = rest.get(read..).unwrap_or_default();
        }
        Ok(())
    }

    /// The next page. A failure that passes is told to the pace, which knows how long to wait.
    async fn page(&mut self, cursor: Option<&str>) -> Result<ListPage, Error> {
        let mut failed: Option<Answer> = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            self.pace.page(failed.as_ref()).await;
            let prefix = self.target.template.prefix();
            match self.kv.list(self.target.namespace, prefix, cursor).await {
                Ok(page) => {
                    self.progress.names += page.pairs.len() as u64;
                    (self.tell)(self.progress);
                    return Ok(page);
                }
                Err(answer) if attempts < ATTEMPTS && passes(&answer.outcome) => {
                    failed = Some(answer);
                }
                Err(answer) => return Err(Error::Kv(answer)),
            }
        }
    }
}

/// Whether a page may come at another try.
fn passes(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Throttled(_) | Outcome::Ambiguous(_) | Outcome::NotSent(_)
    )
}
