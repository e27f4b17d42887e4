//! How a schema gets from one version to the next, while daemons of both work on it.
//!
//! Owns the order: what may run beside the daemons that are there, and what only once these are
//! replaced. Pure: which version stands in a database is somebody else's question.
//!
//! Two numbers hold it together. The schema says which daemons it *serves*, the program says which
//! schema it [*needs*](NEEDS). A step that adds leaves `serves` as it is, so it comes first and the
//! daemons go on; a step that takes away raises it, and comes once nobody needs what goes.

use super::{Schema, VERSION};

/// The oldest version of the schema that this program can work with.
pub const NEEDS: i32 = 1;

/// One file: one transaction that brings a schema of one version to the next, or changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The version that it starts from; it ends at the next one.
    pub from: i32,
    /// The oldest version of the daemon that can work with what it leaves.
    pub serves: i32,
    pub(crate) file: &'static str,
    pub(crate) sql: &'static str,
}

/// Every step there is, oldest first: none before the first release.
pub const STEPS: &[Step] = &[];

impl Step {
    /// The version that it ends at.
    pub const fn to(&self) -> i32 {
        self.from + 1
    }

    /// Its file below `deploy/sql`.
    pub fn file(&self) -> String {
        format!("upgrade/{}", self.file)
    }

    /// Its SQL, to be sent as one simple query. As for [`super::install`] after an error.
    pub fn sql(&self, schema: &Schema) -> String {
        schema.rename(self.sql)
    }
}

/// What leads from a version to that of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// To be run while daemons of the version are there.
    pub now: Vec<Step>,
    /// To be run once no daemon of the version is left.
    pub later: Vec<Step>,
}

/// There is no way from a version to that of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    /// The schema is ahead of this program.
    #[error("the schema has version {0}, and this program makes version {VERSION}")]
    Newer(i32),
    /// There never was such a version.
    #[error(
        "there is no version {0} of the schema: the first is 1, and this program makes {VERSION}"
    )]
    Unknown(i32),
}

/// What is to be done with a schema of this version, in order; nothing where it is that of this
/// program.
///
/// # Errors
/// [`NoPath`].
pub fn path(from: i32) -> Result<Path, NoPath> {
    if from > VERSION {
        return Err(NoPath::Newer(from));
    }
    if from < 1 {
        return Err(NoPath::Unknown(from));
    }
    Ok(in_order(STEPS, from))
}

fn in_order(steps: &[Step], from: i32) -> Path {
    let mut now: Vec<Step> = steps
        .iter()
        .filter(|step| step.from >= from)
        .copied()
        .collect();
    // Steps build on each other: behind one that must wait, all do.
    let waits = now.iter().position(|step| step.serves > from);
    let later = waits.map_or_else(Vec::new, |at| now.split_off(at));
    Path { now, later }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_to_the_version_of_this_program_one_by_one() {
        for (at, step) in STEPS.iter().enumerate() {
            assert_eq!(step.from, i32::try_from(at).unwrap() + 1);
            let named = format!("upgrade/{:03}-to-{:03}.sql", step.from, step.to());
            assert_eq!(step.file(), named);
            assert!(
                step.serves <= step.from,
                "{named}: whoever works now could not go on, and nobody else could begin"
            );
        }
        assert_eq!(STEPS.last().map_or(1, Step::to), VERSION);
        for from in 1..=VERSION {
            let reached = path(from).unwrap().now.last().map_or(from, Step::to);
            assert!(
                reached >= NEEDS,
                "from version {from} the daemons of this program would wait for a step that waits for \
                 them to replace the others"
            );
        }
    }

    #[test]
    fn what_takes_away_waits_for_the_daemons_to_be_replaced() {
        let step = |from, serves| Step {
            from,
            serves,
            file: "",
            sql: "",
        };
        // Adds, adds, takes away what only versions 1 and 2 used, adds.
        let steps = [step(1, 1), step(2, 1), step(3, 3), step(4, 3)];
        let order = |from| {
            let Path { now, later } = in_order(&steps, from);
            let froms = |steps: Vec<Step>| steps.iter().map(|step| step.from).collect::<Vec<_>>();
            (froms(now), froms(later))
        };
        assert_eq!(order(1), (vec![1, 2], vec![3, 4]));
        assert_eq!(order(2), (vec![2], vec![3, 4]));
        assert_eq!(order(3), (vec![3, 4], vec![]));
        assert_eq!(order(4), (vec![4], vec![]));
        assert_eq!(order(5), (vec![], vec![]));
    }

    #[test]
    fn only_versions_that_exist_have_a_path() {
        assert_eq!(path(0), Err(NoPath::Unknown(0)));
        assert_eq!(path(VERSION + 1), Err(NoPath::Newer(VERSION + 1)));
        assert_eq!(path(VERSION).unwrap().now, []);
        assert_eq!(path(1).unwrap().now, STEPS);
    }

    #[test]
    fn renaming_leaves_no_trace_of_the_default_name() {
        let schema = Schema::parse("edge").unwrap();
        for step in STEPS {
            let sql = step.sql(&schema);
            assert!(!sql.contains("pg2kv"), "{}", step.file());
            assert!(sql.contains("edge_owner"), "{}", step.file());
        }
    }
}
