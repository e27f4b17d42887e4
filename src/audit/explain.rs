//! Where one KV key comes from, and whether KV says what Postgres says. Writes to neither.
//!
//! Owns the verdict. **A difference counts only when it is seen twice** with nothing on its way after
//! the first look: both sides move, and so does the ledger between them.

use bytes::Bytes;

use super::{Error, Target};
use crate::change::owner::{InstallationId, Mark, Ownership};
use crate::change::{ContentHash, Document, Key, KvName, Poison, Rendered};
use crate::document;
use crate::sink::kv::KvClient;
use crate::sink::setup::NamespaceId;
use crate::source::audit::Auditor;
use crate::source::explain::{Presence, Standing};

/// Looks until a difference is believed.
const LOOKS_MAX: usize = 3;

/// A pair in KV.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    /// Its value.
    pub value: Bytes,
    /// The content hash in its metadata; `None` where something else than this installation wrote it.
    pub hash: Option<ContentHash>,
    /// The sync itself wrote it.
    pub own: bool,
    /// What any pg2kv left in its metadata.
    pub mark: Option<Mark>,
    /// The other installation of pg2kv that wrote it, if one did.
    pub other: Option<InstallationId>,
}

/// What the rows make of a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Wanted {
    /// This pair.
    Pair(Document),
    /// No pair: this is what there is of a row.
    Nothing(Presence),
    /// A pair that KV cannot take.
    Poison(Poison),
    /// The value or `where` fails for the row.
    Failing,
}

/// All that is known about a key of one sync.
#[derive(Clone)]
pub struct Explanation {
    /// The key; `None` where no row could have one that makes this name.
    pub key: Option<Key>,
    /// The values of the key columns that the name holds.
    pub columns: Vec<String>,
    /// What the rows make; `None` where they were not read.
    pub wanted: Option<Wanted>,
    /// What stands in KV.
    pub found: Option<Found>,
    /// What the ledger says; `None` where there is no key.
    pub standing: Option<Standing>,
    /// What follows from all that.
    pub conclusion: Conclusion,
}

/// What is to be thought of a key, the worst first.
#[derive(Clone, Debug, PartialEq)]
pub enum Conclusion {
    /// No row of the sync makes this name: it is `user:007`, and 7 makes `user:7`.
    NotMade {
        /// The name that the same row would have.
        instead: Option<KvName>,
    },
    /// The sync's table is not watched.
    Unwatched,
    /// KV says what Postgres says.
    Equal,
    /// It does not, and that is on its way.
    OnItsWay(Way),
    /// It does not, and waits for a daemon to lead.
    Stalled(Way),
    /// The row is gone, and the brake holds the delete.
    Held,
    /// It cannot be written as it is.
    Dead,
    /// Changes are not recorded.
    Unrecorded,
    /// There is no row, and the pair is somebody else's.
    Foreign,
    /// It does not, for no reason that is known.
    Differs,
}

/// How a change gets to KV.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// It waits in the outbox, for so many seconds.
    Change(f64),
    /// It was claimed so many seconds ago by the one who leads.
    Claim(f64),
    /// An earlier leader claimed it; it is written again.
    Doubt,
    /// A walk over all rows was asked for.
    Request(f64),
    /// A walk over all rows is under way and will come to it.
    Walk,
    /// The sync was never walked: a walk is about to begin.
    First,
    /// A walk begins, for what the triggers missed.
    Owed,
}

impl Conclusion {
    /// Whether nobody need do anything.
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::Equal | Self::OnItsWay(_))
    }
}

/// Explains what `name` is to a sync; `None` where its template cannot make it.
///
/// # Errors
/// Postgres or Workers KV does not answer as it should; then nothing is known.
pub async fn explain(
    auditor: &Auditor,
    kv: &KvClient,
    target: &Target<'_>,
    name: &KvName,
) -> Result<Option<Explanation>, Error> {
    let Some(columns) = target.template.reverse(name) else {
        return Ok(None);
    };
    let ownership = auditor.ownership(&target.source.name);
    let keys = auditor
        .keys_of(target.source, std::slice::from_ref(&columns))
        .await?;
    let Some(key) = keys.into_iter().next().flatten() else {
        return Ok(Some(Explanation {
            key: None,
            columns,
            wanted: None,
            found: find(kv, target.namespace, &ownership, name).await?,
            standing: None,
            conclusion: Conclusion::NotMade { instead: None },
        }));
    };
    let standing = auditor.standing(target.source, &key).await?;
    if !standing.watched {
        // Without a watch this role may not read the table either.
        return Ok(Some(Explanation {
            key: Some(key),
            columns,
            wanted: None,
            found: find(kv, target.namespace, &ownership, name).await?,
            standing: Some(standing),
            conclusion: Conclusion::Unwatched,
        }));
    }
    let mut before: Option<Explanation> = None;
    for _ in 0..LOOKS_MAX {
        let now = look(auditor, kv, target, name, &key, &columns).await?;
        let believed = now.conclusion != Conclusion::Differs
            || before
                .as_ref()
                .is_some_and(|before| before.wanted == now.wanted && before.found == now.found);
        before = Some(now);
        if believed {
            break;
        }
    }
    Ok(before)
}

/// The pair of this name, whoever wrote it, as it is to the sync of this ownership.
///
/// # Errors
/// Workers KV does not answer as it should.
pub async fn find(
    kv: &KvClient,
    namespace: &NamespaceId,
    ownership: &Ownership,
    name: &KvName,
) -> Result<Option<Found>, Error> {
    let Some(value) = kv.get(namespace, name).await.map_err(Error::Pair)? else {
        return Ok(None);
    };
    let listed = kv.look(namespace, name).await.map_err(Error::Pair)?;
    let mark = listed.and_then(|listed| listed.mark);
    Ok(Some(Found {
        value,
        hash: ownership.hash(mark),
        own: ownership.wrote(mark),
        mark,
        other: ownership.other(mark),
    }))
}

async fn look(
    auditor: &Auditor,
    kv: &KvClient,
    target: &Target<'_>,
    name: &KvName,
    key: &Key,
    columns: &[String],
) -> Result<Explanation, Error> {
    let source = target.source;
    let ownership = auditor.ownership(&source.name);
    let rows = auditor.read(source, std::slice::from_ref(key)).await?;
    let mut instead = None;
    let wanted = match rows.into_iter().next().flatten() {
        None => Wanted::Failing,
        Some(row) => {
            if let Ok(own) = target.template.render(&row.columns)
                && own != *name
            {
                instead = Some(own);
            }
            match document::render(target.template, ownership.owner, &row.columns, row.draft) {
                Rendered::Put(document) => Wanted::Pair(document),
                Rendered::Poison(poison) => Wanted::Poison(poison),
                Rendered::Delete(_) | Rendered::Nothing | Rendered::Large => {
                    Wanted::Nothing(auditor.presence(source, key).await?)
                }
            }
        }
    };
    let found = find(kv, target.namespace, &ownership, name).await?;
    // Last: what is settled by now was written before, and shows at the next look.
    let standing = auditor.standing(source, key).await?;
    let conclusion = if instead.is_some() {
        Conclusion::NotMade { instead }
    } else {
        conclude(&wanted, found.as_ref(), &standing)
    };
    Ok(Explanation {
        key: Some(key.clone()),
        columns: columns.to_vec(),
        wanted: Some(wanted),
        found,
        standing: Some(standing),
        conclusion,
    })
}

/// What follows from what was seen.
fn conclude(wanted: &Wanted, found: Option<&Found>, standing: &Standing) -> Conclusion {
    let equal = match (wanted, found) {
        (Wanted::Pair(document), Some(found)) => {
            found.hash == Some(document.hash) && found.value == *document.value.bytes()
        }
        (Wanted::Nothing(_), None) => true,
        _ => false,
    };
    if equal {
        return Conclusion::Equal;
    }
    let gone = matches!(wanted, Wanted::Nothing(_));
    let cannot = matches!(wanted, Wanted::Poison(_) | Wanted::Failing);
    let foreign = found.is_some_and(|found| found.hash.is_none());
    let way = way(standing, gone);
    let swept = standing.backfill.as_ref().is_some_and(|walk| !walk.rows);
    if gone && !foreign && standing.held.is_some() && (standing.claim.is_some() || swept) {
        return Conclusion::Held;
    }
    let leads = standing.leader.as_ref().is_some_and(|leader| leader.alive);
    match way {
        // A pair of somebody else is left alone by a walk; a change of the row deletes it.
        Some(Way::Walk | Way::First | Way::Owed | Way::Request(_)) if gone && foreign => {
            Conclusion::Foreign
        }
        Some(way) if leads => Conclusion::OnItsWay(way),
        Some(way) => Conclusion::Stalled(way),
        None if cannot || standing.letter.is_some() => Conclusion::Dead,
        None if standing.fault.is_some() => Conclusion::Unrecorded,
        None if gone && foreign => Conclusion::Foreign,
        None => Conclusion::Differs,
    }
}

/// How the ledger says that KV will come to say what Postgres says.
fn way(standing: &Standing, gone: bool) -> Option<Way> {
    if let Some(claim) = standing.claim {
        return Some(if claim.current {
            Way::Claim(claim.age)
        } else {
            Way::Doubt
        });
    }
    if let Some(age) = standing.changes.oldest {
        return Some(Way::Change(age));
    }
    if let Some(age) = standing.requests.oldest {
        return Some(Way::Request(age));
    }
    if let Some(walk) = &standing.backfill {
        // A row that it has passed was claimed then. What has no row is looked for at its end.
        return (gone || (walk.rows && walk.ahead)).then_some(Way::Walk);
    }
    if standing.owed && standing.fault.is_none() {
        return Some(Way::Owed);
    }
    (standing.walked.is_none() && !standing.owed).then_some(Way::First)
}
