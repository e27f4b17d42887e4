//! Who wrote a pair: the installations of pg2kv, and the mark that each leaves in the metadata.
//!
//! **Invariant:** the hash of a mark is only given to its owner. So a pair that somebody else wrote,
//! another installation of pg2kv too, is never taken for one of ours: it is neither equal nor an
//! orphan, and no scan deletes it.

use std::fmt;
use std::sync::Arc;

use super::ContentHash;

/// Number of an installation of pg2kv: made at random when its schema was installed, and kept with
/// it. 48 bits, so that it is short in the metadata of each pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstallationId(u64);

impl InstallationId {
    /// Digits of its text.
    pub const DIGITS: usize = 12;

    /// The number of this text: twelve hexadecimal digits in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        hex(text, Self::DIGITS).map(|id| Self(id as u64))
    }
}

impl fmt::Display for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// Who writes a pair: a sync of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The installation.
    pub installation: InstallationId,
    /// 32 bits that stand for the name of the sync.
    sync: u32,
}

impl Owner {
    /// The sync of this name.
    pub fn new(installation: InstallationId, sync: &str) -> Self {
        let mut first = [0; 4];
        first.copy_from_slice(&blake3::hash(sync.as_bytes()).as_bytes()[..4]);
        Self {
            installation,
            sync: u32::from_be_bytes(first),
        }
    }
}

/// What pg2kv writes into the metadata of each pair: the hash of its content, and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    hash: ContentHash,
    owner: Owner,
}

impl Mark {
    /// The mark of a pair of this content.
    pub fn new(hash: ContentHash, owner: Owner) -> Self {
        Self { hash, owner }
    }

    /// The mark of this text, as [`Self::to_string`] gives it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let hash = hex(parts.next()?, 32)?;
        let installation = InstallationId::parse(parts.next()?)?;
        let sync = u32::try_from(hex(parts.next()?, 8)?).ok()?;
        parts.next().is_none().then_some(Self {
            hash: ContentHash(hash),
            owner: Owner { installation, sync },
        })
    }

    /// The installation that wrote the pair.
    pub fn installation(&self) -> InstallationId {
        self.owner.installation
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner { installation, sync } = self.owner;
        write!(f, "{}.{installation}.{sync:08x}", self.hash)
    }
}

/// Which pairs are a sync's own: under the names that its keys make, those of its installation and of
/// those that were adopted; under any other names, only those that a sync of its own name wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Who writes.
    pub owner: Owner,
    adopted: Arc<[InstallationId]>,
}

impl Ownership {
    /// The hash that a pair carries, if it is of the installation. The name must be one that a key of
    /// the sync makes.
    ///
    /// A pair that another sync of the installation left there gets a hash that no document has: it is
    /// written anew, or deleted if there is no row.
    pub fn hash(&self, mark: Option<Mark>) -> Option<ContentHash> {
        let mark = mark?;
        if self.other(Some(mark)).is_some() {
            return None;
        }
        Some(if mark.owner.sync == self.owner.sync {
            mark.hash
        } else {
            ContentHash(!mark.hash.0)
        })
    }

    /// Whether a sync of this name and installation wrote a pair, whatever its name.
    pub fn wrote(&self, mark: Option<Mark>) -> bool {
        mark.is_some_and(|mark| {
            mark.owner.sync == self.owner.sync && self.other(Some(mark)).is_none()
        })
    }

    /// The other installation that wrote a pair, if one did.
    pub fn other(&self, mark: Option<Mark>) -> Option<InstallationId> {
        let installation = mark?.owner.installation;
        let known = installation == self.owner.installation || self.adopted.contains(&installation);
        (!known).then_some(installation)
    }
}

/// An installation, as its schema says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Its number.
    pub id: InstallationId,
    /// Installations whose pairs count as its own.
    pub adopted: Arc<[InstallationId]>,
}

impl Installation {
    /// Which pairs are the own ones of the sync of this name.
    pub fn of_sync(&self, name: &str) -> Ownership {
        Ownership {
            owner: Owner::new(self.id, name),
            adopted: Arc::clone(&self.adopted),
        }
    }
}

/// The number of so many hexadecimal digits in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let all = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == digits && all).then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation(id: &str, adopted: &[&str]) -> Installation {
        let parse = |id: &str| InstallationId::parse(id).unwrap();
        Installation {
            id: parse(id),
            adopted: adopted.iter().map(|id| parse(id)).collect(),
        }
    }

    #[test]
    fn a_mark_is_read_back_and_nothing_else_is_a_mark() {
        let owner = installation("0123456789ab", &[]).of_sync("users").owner;
        let mark = Mark::new(ContentHash(7), owner);
        let text = mark.to_string();
        assert_eq!(text.len(), 54);
        assert_eq!(Mark::parse(&text), Some(mark));
        let hash = "0123456789abcdef0123456789abcdef";
        for wrong in [
            "".to_owned(),
            hash.to_owned(),
            format!("{text}.0"),
            text.to_uppercase(),
            text.replacen("0123456789ab", "+123456789ab", 1),
            text[1..].to_owned(),
        ] {
            assert_eq!(Mark::parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_owner_learns_the_hash() {
        let (ours, theirs) = (
            installation("0123456789ab", &[]),
            installation("ffffffffffff", &[]),
        );
        let mark =
            |of: &Installation, sync| Some(Mark::new(ContentHash(7), of.of_sync(sync).owner));
        let users = ours.of_sync("users");
        assert_eq!(users.hash(mark(&ours, "users")), Some(ContentHash(7)));
        let tags = users.hash(mark(&ours, "tags"));
        assert!(
            tags.is_some() && tags != Some(ContentHash(7)),
            "another sync"
        );
        assert!(users.wrote(mark(&ours, "users")) && !users.wrote(mark(&ours, "tags")));
        assert!(!users.wrote(mark(&theirs, "users")) && !users.wrote(None));
        assert_eq!(users.hash(mark(&theirs, "users")), None);
        assert_eq!(users.hash(None), None);
        assert_eq!(users.other(mark(&ours, "tags")), None);
        assert_eq!(users.other(mark(&theirs, "users")), Some(theirs.id));
        let adopting = installation("0123456789ab", &["ffffffffffff"]).of_sync("users");
        assert_eq!(adopting.hash(mark(&theirs, "users")), Some(ContentHash(7)));
        assert!(!adopting.wrote(mark(&theirs, "tags")));
        assert_eq!(adopting.other(mark(&theirs, "tags")), None);
    }
}
