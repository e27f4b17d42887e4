//! What can go wrong at the Postgres edge, and what each failure means.
//!
//! Owns the one table from SQLSTATE to [`Kind`]. Decides nothing: retry, park, pause or stop is the
//! relay's choice. Must never let a row's data out: the server's DETAIL, HINT and CONTEXT are
//! dropped, and so is the message wherever it may quote a value.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio_postgres::error::{DbError, Severity};

use crate::ledger::Failure;

pub use crate::ledger::FailureKind as Kind;

/// A failure at the Postgres edge.
///
/// `Display` is one sentence without row data: what was being done, what the server said, and what
/// to do where that is known. The source is kept for input/output and TLS failures only, because a
/// server error's text may quote a row.
pub struct Error {
    kind: Kind,
    doing: String,
    said: String,
    hint: Option<String>,
    code: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Where a statement belongs: the same SQLSTATE means different things there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Opening a connection.
    Connect,
    /// Objects of the pg2kv schema and the catalog.
    Own,
    /// A watched relation as the catalog has it: no row is looked at.
    Relation,
    /// Rows of a watched relation. Their code (expressions, functions, types) may raise any SQLSTATE
    /// with any text, so neither is believed: the text is not shown, and whether the row or the
    /// relation is at fault is found by the same statement without rows.
    Rows,
}

impl Error {
    /// A failure that this side found.
    pub(crate) fn new(kind: Kind, doing: impl Into<String>, said: impl Into<String>) -> Self {
        Self {
            kind,
            doing: doing.into(),
            said: said.into(),
            hint: None,
            code: None,
            source: None,
        }
    }

    /// The same failure with what to do about it.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure of another kind.
    pub(crate) fn into_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Whether rows are at fault, if the same statement works without them.
    pub(crate) fn is_of_rows(&self) -> bool {
        self.kind.is_of_rows()
    }

    /// This process is no longer the leader.
    pub(crate) fn fenced(doing: &str) -> Self {
        Self::new(
            Kind::Fenced,
            doing,
            "another process has taken the lease since",
        )
    }

    /// The server did not answer in time; its state is unknown.
    pub(crate) fn deadline(doing: &str, limit: Duration) -> Self {
        Self::new(
            Kind::Connection,
            doing,
            format!(
                "no answer within {:.1} s; the connection is given up",
                limit.as_secs_f64()
            ),
        )
    }

    /// A failure that the driver reported.
    pub(crate) fn from_driver(place: Place, doing: &str, error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => Self::from_server(place, doing, db),
            None => Self::from_client(place, doing, error),
        }
    }

    fn from_server(place: Place, doing: &str, db: &DbError) -> Self {
        let code = db.code().code();
        // Whatever a statement's error claims, its connection lives on.
        let ends = !matches!(db.parsed_severity(), Some(Severity::Error));
        let place = if ends && place != Place::Connect {
            Place::Own
        } else {
            place
        };
        let verdict = classify(place, code);
        let quotes = match place {
            Place::Rows => true,
            // With a context it comes from a function of the table's owner: any text.
            Place::Relation => db.where_().is_some() || quotes_rows(code),
            Place::Own | Place::Connect => quotes_rows(code),
        };
        let said = if quotes {
            format!("{} (SQLSTATE {code})", class_name(code))
        } else {
            format!("{} (SQLSTATE {code})", one_line(db.message()))
        };
        Self {
            kind: verdict.kind,
            doing: doing.to_owned(),
            said,
            hint: verdict.hint.map(str::to_owned),
            code: Some(code.to_owned()),
            source: None,
        }
    }

    fn from_client(place: Place, doing: &str, error: tokio_postgres::Error) -> Self {
        let mut said = one_line(&error.to_string());
        let mut kind = Kind::Connection;
        let mut hint = None;
        if place == Place::Rows && said.starts_with("error deserializing column") {
            // The connection is as good as before.
            return Self::new(
                Kind::Row,
                doing,
                "a value has bytes that are no value of its type",
            );
        }
        if let Some(tls) = tls_cause(&error) {
            kind = Kind::Refused;
            hint = Some(tls_hint(tls));
        } else if place == Place::Connect {
            if said.starts_with("error performing TLS handshake") && refused_tls(&error) {
                kind = Kind::Refused;
                hint = Some(
                    "the server does not offer TLS; set ssl = on there, or sslmode=disable for a \
                     loopback host"
                        .to_owned(),
                );
            } else if said.starts_with("invalid configuration")
                || said.starts_with("authentication error")
            {
                kind = Kind::Refused;
                hint = Some("look at user, password and channel_binding of the URL".to_owned());
            } else if read_only(&error) {
                kind = Kind::Transient;
                said = "the server is read-only: a standby, or default_transaction_read_only is on"
                    .to_owned();
                hint = Some("give the primary's host, or all hosts of the cluster".to_owned());
            } else {
                hint = Some(
                    "see that the server runs, and that its host and port can be reached from here"
                        .to_owned(),
                );
            }
        }
        Self {
            kind,
            doing: doing.to_owned(),
            said,
            hint,
            code: None,
            source: error.into_source(),
        }
    }

    /// What the failure means.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the operator can do, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The SQLSTATE, where the server gave one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.said)?;
        // The chain below is input/output and TLS only, so it is safe to show in full.
        let mut cause = self.source.as_deref().map(|error| error as &dyn StdError);
        let mut last = String::new();
        while let Some(error) = cause {
            let text = one_line(&error.to_string());
            if text != last && !self.said.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("text", &self.to_string())
            .finish_non_exhaustive()
    }
}

impl StdError for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind,
            hint: error.hint.clone(),
            detail: Error {
                hint: None,
                ..error
            }
            .to_string(),
        }
    }
}

/// A row of the table below.
struct Verdict {
    kind: Kind,
    hint: Option<&'static str>,
}

const INSTALL: &str = "run `pg2kv install`, or `psql -f install.sql` as a superuser or the owner \
                       of the database";
const GRANT: &str = "grant the daemon's role to this user (`grant pg2kv_daemon to <user>`), or run \
                     `pg2kv install` again";

const ENCODING: &str = "a text has characters that the encoding of the database lacks: use others in \
                        the configuration, or a database in UTF8";

/// SQLSTATE → meaning. The class (first two characters) decides unless a full code is listed.
/// Source: PostgreSQL documentation, appendix A.
fn classify(place: Place, code: &str) -> Verdict {
    use Kind::{Connection, Refused, Relation, Row, Transient};
    let class = code.get(..2).unwrap_or("");
    let (kind, hint) = match (place, class, code) {
        // Wherever it happens.
        (Place::Rows, _, "57014") => (
            Kind::RowTransient,
            Some("the statement ran into statement_timeout"),
        ),
        (Place::Rows, "40" | "53" | "58", _) | (Place::Rows, _, "55P03") => {
            (Kind::RowTransient, None)
        }
        (Place::Rows, _, _) => (Row, None),
        (_, _, "40001" | "40P01" | "40003") => (Transient, None),
        (Place::Relation, _, "55P03") => (
            Relation,
            Some("another session has locked the table; pg_blocking_pids() tells which"),
        ),
        (_, _, "55P03") => (Transient, Some("another session holds a lock for long")),
        (_, _, "57014") => (Transient, Some("the statement ran into statement_timeout")),
        (_, _, "57P03") => (
            Connection,
            Some("the server is starting up or shutting down"),
        ),
        (_, "40" | "53" | "58", _) => (Transient, None),
        (Place::Relation, "08" | "57" | "26" | "34" | "28", _) => (Relation, None),
        (_, "08" | "57", _) => (Connection, None),
        // A statement of another session, or none: what a transaction pooler does to a session.
        (_, "26" | "34", _) => (Connection, None),

        (_, _, "28P01" | "28000") => (
            Refused,
            Some("look at user and password of the URL, and at pg_hba.conf"),
        ),
        (_, "28", _) => (Refused, None),
        (Place::Connect, _, "3D000") => (Refused, Some("look at the database name of the URL")),
        (Place::Connect, _, "42501") => (
            Refused,
            Some("the role may not connect: grant connect on the database to it"),
        ),
        (Place::Connect, "0A" | "42", _) => (Refused, None),
        (Place::Connect, _, _) => (Connection, None),

        (Place::Own, _, "42P01" | "3F000" | "42883" | "42703") => (Refused, Some(INSTALL)),
        (Place::Own, _, "42501") => (Refused, Some(GRANT)),
        // The server became a standby, or was set read-only, under an open session.
        (Place::Own, "25", _) => (Connection, None),
        (Place::Own, _, "22021" | "22P05") => (Refused, Some(ENCODING)),
        (Place::Own, _, _) => (Refused, None),

        (Place::Relation, _, "25006") => (
            Relation,
            Some("expressions must not write: they run in a read-only transaction"),
        ),
        (Place::Relation, _, "42501") => (
            Relation,
            Some(
                "the daemon may read the key and the watched columns: name each column that value, \
                 where, content_type, metadata or expires_at use in `watch`, and run `pg2kv \
                 install`; with row-level security on, its role also needs bypassrls",
            ),
        ),
        (Place::Relation, _, "42703" | "42P01" | "42883" | "42704" | "3F000") => (
            Relation,
            Some(
                "table and columns must exist, and names outside pg_catalog must carry their \
                  schema (search_path holds only pg_catalog)",
            ),
        ),
        // Data exceptions, integrity, cardinality, raised by a function, limits of one value.
        (Place::Relation, "22" | "23" | "21" | "P0" | "38" | "39" | "2F" | "54", _) => (Row, None),
        (Place::Relation, _, "XX000") => (Row, None),
        (Place::Relation, _, _) => (Relation, None),
    };
    Verdict { kind, hint }
}

/// Whether the message of this SQLSTATE may quote a value of a row.
fn quotes_rows(code: &str) -> bool {
    matches!(
        code.get(..2).unwrap_or(""),
        "21" | "22" | "23" | "27" | "2F" | "38" | "39" | "44" | "54" | "P0" | "XX" | "HV"
    )
}

fn class_name(code: &str) -> &'static str {
    match code {
        "22021" | "22P05" => return "a text has bytes that cannot be converted to UTF-8",
        "25006" => return "an expression writes, and it runs in a read-only transaction",
        "57014" => return "it took longer than statement_timeout",
        "55P03" => return "a lock was not available in time",
        _ => {}
    }
    match code.get(..2).unwrap_or("") {
        "21" => "an expression gave more than one row",
        "22" => "a value does not fit its type or function",
        "23" => "a constraint is violated",
        "38" | "39" | "2F" | "P0" => "a function raised an error",
        "54" => "a value is over a limit of the server",
        "XX" => "the server reported an internal error",
        _ => "the server reported an error",
    }
}

/// Control characters out, cut short: what a server says goes into one log line.
fn one_line(text: &str) -> String {
    const SAID_MAX_CHARS: usize = 300;
    text.chars()
        .take(SAID_MAX_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn causes(error: &tokio_postgres::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

fn tls_cause(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| {
        cause.downcast_ref::<rustls::Error>().or_else(|| {
            cause
                .downcast_ref::<io::Error>()?
                .get_ref()?
                .downcast_ref::<rustls::Error>()
        })
    })
}

fn tls_hint(error: &rustls::Error) -> String {
    use rustls::CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(
            C::NotValidForName | C::NotValidForNameContext { .. },
        ) => {
            "the server's certificate names another host (a subject alternative name is needed); \
             give that name as host, or use sslmode=verify-ca"
        }
        // An authority of the same name with another key shows as a bad signature.
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "the server's certificate is signed by an unknown authority; give its certificate as \
             sslrootcert"
        }
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            "the server's certificate has expired, or the clock here is wrong"
        }
        _ => "TLS to the server failed; it is not tried without",
    }
    .to_owned()
}

fn refused_tls(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|cause| cause.to_string().contains("does not support TLS"))
}

fn read_only(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| {
            error.kind() == io::ErrorKind::PermissionDenied
                && error.to_string().contains("does not allow writes")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{Error, Kind, Place, classify, quotes_rows};

    #[test]
    fn the_same_code_means_what_its_place_says() {
        for (place, code, kind) in [
            (Place::Own, "42P01", Kind::Refused),
            (Place::Relation, "42P01", Kind::Relation),
            (Place::Own, "42501", Kind::Refused),
            (Place::Relation, "42501", Kind::Relation),
            (Place::Relation, "22P02", Kind::Row),
            (Place::Relation, "22012", Kind::Row),
            (Place::Relation, "21000", Kind::Row),
            (Place::Relation, "P0001", Kind::Row),
            (Place::Relation, "XX001", Kind::Relation),
            (Place::Relation, "25006", Kind::Relation),
            (Place::Own, "25006", Kind::Connection),
            (Place::Own, "40001", Kind::Transient),
            (Place::Relation, "57014", Kind::Transient),
            (Place::Relation, "08006", Kind::Relation),
            (Place::Rows, "42P01", Kind::Row),
            (Place::Rows, "08006", Kind::Row),
            (Place::Rows, "28000", Kind::Row),
            (Place::Rows, "57P01", Kind::Row),
            (Place::Rows, "26000", Kind::Row),
            (Place::Rows, "57014", Kind::RowTransient),
            (Place::Rows, "55P03", Kind::RowTransient),
            (Place::Rows, "40001", Kind::RowTransient),
            (Place::Own, "53100", Kind::Transient),
            (Place::Connect, "53300", Kind::Transient),
            (Place::Connect, "57P03", Kind::Connection),
            (Place::Own, "57P05", Kind::Connection),
            (Place::Connect, "28P01", Kind::Refused),
            (Place::Connect, "3D000", Kind::Refused),
            (Place::Own, "26000", Kind::Connection),
            (Place::Own, "", Kind::Refused),
        ] {
            assert_eq!(classify(place, code).kind, kind, "{place:?} {code}");
        }
    }

    #[test]
    fn messages_that_may_quote_a_row_are_not_shown() {
        for code in ["22P02", "23505", "P0001", "XX000", "21000", "54000"] {
            assert!(quotes_rows(code), "{code}");
        }
        for code in ["42703", "28P01", "57014", "53300"] {
            assert!(!quotes_rows(code), "{code}");
        }
    }

    #[test]
    fn the_sentence_ends_with_what_to_do() {
        let error = Error::new(Kind::Refused, "opening the lease session", "it is a pooler")
            .with_hint("connect directly");
        assert_eq!(
            error.to_string(),
            "opening the lease session: it is a pooler; connect directly"
        );
    }
}
