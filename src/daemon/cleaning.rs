//! Names that a sync no longer makes: counted, deleted, forgotten.
//!
//! Owns what may be deleted: a pair under the old prefix that the sync wrote, as its mark says, whose
//! name the old template makes, and no sync that is configured. What a configured sync makes is that
//! sync's business, also where the prefix is the same: its comparison writes or deletes it.

use std::collections::HashSet;

use super::clock;
use super::effects::{World, not_trusted};
use crate::change::owner::Ownership;
use crate::change::{Batch, Epoch, KvName, Outcome};
use crate::document::Template;
use crate::ledger::{Failure, FailureKind, OldNames};
use crate::relay::{CleanStep, Cleaned, SweepFailure};
use crate::sink::setup::NamespaceId;
use crate::source;
use crate::source::audit::Auditor;

/// Where old names stand, and how they were made.
struct Old {
    namespace: NamespaceId,
    template: Template,
    ownership: Ownership,
}

impl World {
    /// Does one step for names that are no longer made.
    pub(super) async fn clean(
        &self,
        epoch: Epoch,
        names: OldNames,
        step: CleanStep,
    ) -> Result<Cleaned, SweepFailure> {
        let auditor = Auditor::connect(&self.source).await.map_err(ledger)?;
        let Some(retired) = auditor.retired(names.id).await.map_err(ledger)? else {
            return Ok(Cleaned::Forgotten);
        };
        let written = auditor.new_names_are_written(epoch, names.id).await;
        if !written.map_err(ledger)? {
            return Ok(Cleaned::NotYet);
        }
        let old = Old {
            ownership: auditor.ownership(&retired.sync),
            namespace: NamespaceId::new(retired.namespace).map_err(|_| unreadable())?,
            template: Template::parse(&retired.template, &retired.key_values)
                .map_err(|_| unreadable())?,
        };
        match step {
            CleanStep::Count { last } => {
                let counted = self.pass(&auditor, names, &old, None).await?;
                if counted > 0 || !last {
                    return Ok(Cleaned::Counted(counted));
                }
                let forgotten = auditor.forget_retired(epoch, names.id).await;
                forgotten.map(|()| Cleaned::Forgotten).map_err(ledger)
            }
            CleanStep::Delete { most } => {
                // First, so that whoever makes these names again knows that deletes may still land.
                let touched = auditor.touch_retired(epoch, names.id).await;
                touched.map_err(ledger)?;
                let deleted = self.pass(&auditor, names, &old, Some(most)).await?;
                Ok(Cleaned::Deleted(deleted))
            }
        }
    }

    /// Goes through the names under the old prefix; deletes what may be deleted, at most so many, or
    /// only counts it.
    async fn pass(
        &self,
        auditor: &Auditor,
        names: OldNames,
        old: &Old,
        most: Option<u64>,
    ) -> Result<u64, SweepFailure> {
        let (mut found, mut cursor) = (0, None);
        loop {
            self.desk.permission(names.sync, None).await;
            let page = self
                .kv
                .list(&old.namespace, old.template.prefix(), cursor.as_deref())
                .await
                .map_err(SweepFailure::Kv)?;
            let ours = page.pairs.into_iter().filter(|pair| {
                old.ownership.wrote(pair.mark) && old.template.reverse(&pair.name).is_some()
            });
            let mut left: Vec<KvName> = ours.map(|pair| pair.name).collect();
            let made = self.made_by_a_sync(auditor, old, &left).await;
            let made = made.map_err(ledger)?;
            left.retain(|name| !made.contains(name));
            if let Some(most) = most {
                let room = usize::try_from(most - found).unwrap_or(usize::MAX);
                left.truncate(room);
            }
            found += left.len() as u64;
            if most.is_some() && !left.is_empty() {
                self.delete(names, old, left).await?;
            }
            cursor = page.next;
            if cursor.is_none() || most == Some(found) {
                return Ok(found);
            }
        }
    }

    async fn delete(
        &self,
        names: OldNames,
        old: &Old,
        left: Vec<KvName>,
    ) -> Result<(), SweepFailure> {
        let trusted_until = self.desk.permission(names.sync, None).await;
        let mut batch = Batch::Delete(left);
        // The last look before the bytes go, as for any write.
        let answer = if clock::now() < trusted_until {
            self.kv.send(&old.namespace, &mut batch).await
        } else {
            not_trusted()
        };
        match answer.outcome {
            // What is in doubt is found by the next count.
            Outcome::Written | Outcome::Partial(_) => Ok(()),
            _ => Err(SweepFailure::Kv(answer)),
        }
    }

    /// Those of the names that a configured sync makes, or may make.
    async fn made_by_a_sync(
        &self,
        auditor: &Auditor,
        old: &Old,
        names: &[KvName],
    ) -> Result<HashSet<KvName>, source::Error> {
        let mut made = HashSet::new();
        for sync in &self.syncs {
            if sync.namespace != old.namespace {
                continue;
            }
            let (theirs, values): (Vec<&KvName>, Vec<Vec<String>>) = names
                .iter()
                .filter_map(|name| Some((name, sync.template.reverse(name)?)))
                .unzip();
            if theirs.is_empty() {
                continue;
            }
            let keys = auditor.keys_of(&sync.source, &values).await?;
            let (theirs, keys): (Vec<&KvName>, Vec<_>) = theirs
                .into_iter()
                .zip(keys)
                // No row of the sync can have a key with this text.
                .filter_map(|(name, key)| Some((name, key?)))
                .unzip();
            let mut done = 0;
            while done < keys.len() {
                let rows = auditor.read(&sync.source, &keys[done..]).await?;
                for (name, row) in theirs[done..].iter().zip(&rows) {
                    // The same key may have another name: `user:007` is not the pair of 7. A row that
                    // cannot be read may be anything.
                    let own = row.as_ref().map(|row| sync.template.render(&row.columns));
                    if own.is_none_or(|own| own.is_ok_and(|own| own == **name)) {
                        made.insert((*name).clone());
                    }
                }
                done += rows.len().max(1);
            }
        }
        Ok(made)
    }
}

fn ledger(error: source::Error) -> SweepFailure {
    SweepFailure::Ledger(error.into())
}

/// Only another version of this program notes what this one cannot read.
fn unreadable() -> SweepFailure {
    SweepFailure::Ledger(Failure {
        kind: FailureKind::Refused,
        detail: "a row of pg2kv.retired cannot be read".to_owned(),
        hint: Some("run the newest version of pg2kv that ran here".to_owned()),
    })
}
