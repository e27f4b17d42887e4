//! The sections but those of the syncs: keys, defaults and limits.
//!
//! Each function reads every key of its section before it gives up, so that all problems come to
//! light at once.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::problem::{Complaint, Scope};
use super::reader::Reader;
use super::secrets::FoundSecret;
use super::section::Section;
use super::shape::Form;
use super::{
    Audit, Backfill, Brake, Kv, Lease, Log, LogFormat, Ops, Postgres, Queue, Retry, Shutdown,
};
use crate::change::{KV_BULK_MAX_BYTES, KV_BULK_MAX_PAIRS};
use crate::sink::setup::{CLOUDFLARE_API_BASE_URL, NamespaceId, SetupError, base_url};
use crate::sink::token::TokenSource;
use crate::source::parse_url;
use crate::sql_kit::Schema;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// How long Cloudflare may go on with a request that it has already answered with an error (524).
/// Source: Cloudflare support, error 524 (100 s), with slack.
const LATE_WRITE: Duration = Duration::from_secs(120);

/// An id of Cloudflare.
const ID: &str = "^[0-9a-f]{32}$";

/// What [`is_name`] takes.
pub(super) const NAME: &str = "^[a-z][a-z0-9_]{0,30}$";

const FORMATS: [(&str, LogFormat); 3] = [
    ("auto", LogFormat::Auto),
    ("json", LogFormat::Json),
    ("text", LogFormat::Text),
];

/// What prints the ids of namespaces.
pub(super) const NAMESPACE_SOURCE: &str = "`wrangler kv namespace list`";

pub(super) fn postgres(reader: &mut Reader<'_>) -> (Option<Schema>, Option<Postgres>) {
    let mut section = reader.section("postgres");
    if !section.is_set("url_file") {
        section.stand_in("url", "DATABASE_URL");
    }
    let found = section.secret("url", "url_file");
    let url_file = match &found {
        Some(FoundSecret::File(path)) => Some(path.clone()),
        _ => None,
    };
    let url_key = if url_file.is_some() {
        "url_file"
    } else {
        "url"
    };
    if found.is_none() && !section.is_set("url") && !section.is_set("url_file") {
        section.missing(
            "url",
            Scope::Database,
            "set it to postgres://USER@HOST:PORT/DATABASE, name a file with url_file, or set \
             DATABASE_URL",
        );
    }
    let password_file = section.text("password_file", None);
    let password_file = password_file.map(PathBuf::from);
    // It is read again for each connection; whoever starts with an unusable file hears of it now.
    let password = password_file.clone().map(|path| {
        let found = FoundSecret::File(path);
        section.reveal(("password_file", "password_file"), found, Scope::Database)
    });
    let root_certificate = section.file("root_certificate", Scope::Database);
    let allow_plaintext = section.boolean("allow_plaintext", false);
    let url = found.and_then(|found| section.reveal(("url", "url_file"), found, Scope::Database));
    let parsed = url.zip(allow_plaintext).and_then(|(url, allow_plaintext)| {
        let roots = root_certificate.as_deref();
        match parse_url(url.expose_secret(), roots, allow_plaintext) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                let (what, help) = sentence(&error.to_string());
                let complaint = Complaint::new(format!("cannot be used: {what}"), help);
                section.scoped_problem(url_key, complaint, Scope::Database);
                None
            }
        }
    });
    let schema = section.parsed("schema", Some("pg2kv"), "a name", |text| {
        Schema::parse(text).map_err(|_| bad_name(text))
    });
    section.form(Form::Matching(NAME));
    let doorbell = section.boolean("doorbell", true);
    let poll_interval = section.duration("poll_interval", "5s", 10 * MS..=HOUR);
    let check_interval = section.duration("check_interval", "1m", 100 * MS..=HOUR);
    let connect_timeout = section.duration("connect_timeout", "10s", 100 * MS..=HOUR);
    let statement_timeout = section.duration("statement_timeout", "30s", 100 * MS..=HOUR);
    let postgres = || {
        let (connection, tls) = parsed?;
        if let Some(read) = password {
            read?;
        }
        Some(Postgres {
            connection,
            url_file,
            password_file,
            tls,
            root_certificate,
            allow_plaintext: allow_plaintext?,
            schema: schema.clone()?,
            doorbell: doorbell?,
            poll_interval: poll_interval?,
            check_interval: check_interval?,
            connect_timeout: connect_timeout?,
            statement_timeout: statement_timeout?,
        })
    };
    let postgres = postgres();
    (schema, postgres)
}

/// The section, and the namespace of syncs that name none.
pub(super) fn kv(reader: &mut Reader<'_>) -> (Option<Kv>, Option<NamespaceId>) {
    let mut section = reader.section("kv");
    section.stand_in("account_id", "CLOUDFLARE_ACCOUNT_ID");
    let account_id = section.id("account_id", "`wrangler whoami`");
    let namespace_id = section
        .id("namespace_id", NAMESPACE_SOURCE)
        .flatten()
        .and_then(|id| NamespaceId::new(id).ok());
    if !section.is_set("api_token_file") {
        section.stand_in("api_token", "CLOUDFLARE_API_TOKEN");
    }
    let found = section.secret("api_token", "api_token_file");
    if found.is_none() && !section.is_set("api_token") && !section.is_set("api_token_file") {
        section.missing(
            "api_token",
            Scope::All,
            "name a file with api_token_file, or set CLOUDFLARE_API_TOKEN; the token needs \
             \"Workers KV Storage: Edit\"",
        );
    }
    let token = found.and_then(|found| {
        let (key, source) = match found {
            FoundSecret::Inline(text) => ("api_token", TokenSource::Fixed(text)),
            FoundSecret::File(path) => ("api_token_file", TokenSource::File(path)),
        };
        match source.read() {
            Ok(_) => {
                if let TokenSource::File(path) = &source {
                    section.warn_exposed(key, path);
                }
                Some(source)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error)
                    .map(|cause| format!(" ({cause})"))
                    .unwrap_or_default();
                let (what, help) = sentence(&error.to_string());
                let complaint = Complaint::new(format!("does not serve: {what}{cause}"), help);
                section.scoped_problem(key, complaint, Scope::All);
                None
            }
        }
    });
    let api_base_url = section.parsed(
        "api_base_url",
        Some(CLOUDFLARE_API_BASE_URL),
        "a URL",
        |text| match base_url(text) {
            Ok(_) => Ok(text.trim_end_matches('/').to_owned()),
            Err(error) => {
                let (what, help) = sentence(&error.to_string());
                let what = what
                    .strip_prefix("api_base_url ")
                    .unwrap_or(&what)
                    .to_owned();
                Err(Complaint::new(what, help))
            }
        },
    );
    if api_base_url.is_none() {
        // What is refused may hold a password or a token.
        section.hide("api_base_url");
    }
    let request_timeout = section.duration("request_timeout", "30s", 10 * MS..=HOUR);
    let connect_timeout = section.duration("connect_timeout", "10s", 10 * MS..=HOUR);
    let proxy = section.proxy("proxy");
    if let (Some(base), Some(Some(_))) = (&api_base_url, &proxy)
        && base.starts_with("http://")
    {
        let (what, help) = sentence(&SetupError::PlaintextThroughProxy.to_string());
        section.problem("proxy", Complaint::new(format!("is set, but {what}"), help));
    }
    let root_certificate = section.file("root_certificate", Scope::All);
    let requests = section.number("requests_per_5min", 1_200_u32, 0..=1_000_000);
    let reserve_requests = section.number("reserve_requests", 60_u32, 0..=1_000_000);
    if let (Some(requests @ 1..), Some(reserve)) = (requests, reserve_requests)
        && reserve >= requests
    {
        section.problem(
            "reserve_requests",
            Complaint::new(
                format!("= {reserve} leaves nothing of requests_per_5min = {requests}"),
                "set it to a small part of requests_per_5min",
            ),
        );
    }
    let in_flight_max = section.number("in_flight_max", 5_usize, 1..=64);
    let pairs_max = section.number("pairs_max", KV_BULK_MAX_PAIRS, 1..=KV_BULK_MAX_PAIRS);
    let body_max_bytes = section.number(
        "body_max_bytes",
        8_000_000_usize,
        1_024..=KV_BULK_MAX_BYTES - 1,
    );
    if let (Some(request), Some(connect)) = (request_timeout, connect_timeout)
        && connect > request
    {
        section.problem(
            "connect_timeout",
            Complaint::new(
                "is longer than kv.request_timeout, of which connecting is a part",
                "set it to at most kv.request_timeout",
            ),
        );
    }
    let kv = || {
        Some(Kv {
            account_id: account_id?,
            token: token?,
            api_base_url: api_base_url?,
            request_timeout: request_timeout?,
            connect_timeout: connect_timeout?,
            proxy: proxy?,
            root_certificate,
            requests_per_5min: Some(requests?).filter(|requests| *requests > 0),
            reserve_requests: reserve_requests?,
            in_flight_max: in_flight_max?,
            pairs_max: pairs_max?,
            body_max_bytes: body_max_bytes?,
        })
    };
    (kv(), namespace_id)
}

pub(super) fn queue(reader: &mut Reader<'_>, kv: Option<&Kv>) -> Option<Queue> {
    let mut section = reader.section("queue");
    let quiet = section.duration("quiet", "100ms", Duration::ZERO..=HOUR);
    let max_wait = section.duration("max_wait", "1s", Duration::ZERO..=HOUR);
    if let (Some(quiet), Some(max_wait)) = (quiet, max_wait)
        && quiet > max_wait
    {
        section.problem(
            "quiet",
            Complaint::new(
                format!(
                    "= \"{}\" is longer than queue.max_wait = \"{}\"",
                    humantime::format_duration(quiet),
                    humantime::format_duration(max_wait)
                ),
                "a key never waits longer than max_wait, so set quiet to at most that",
            ),
        );
    }
    let key_interval = section.duration("key_interval", "1s", Duration::ZERO..=HOUR);
    if key_interval.is_some_and(|interval| interval < SECOND) {
        section.warn(
            "key_interval",
            "is below 1s, the pace at which Workers KV takes writes of one key; faster ones are \
             refused with 429",
        );
    }
    let keys_max = section.number("keys_max", 60_000_usize, 1_000..=10_000_000);
    if let (Some(keys_max), Some(kv)) = (keys_max, kv)
        && keys_max < kv.pairs_max
    {
        section.problem(
            "keys_max",
            Complaint::new(
                format!("= {keys_max} is less than kv.pairs_max = {}", kv.pairs_max),
                "the queue must hold at least one full request: raise keys_max or lower pairs_max",
            ),
        );
    }
    let leading = section.boolean("leading", false);
    Some(Queue {
        quiet: quiet?,
        max_wait: max_wait?,
        key_interval: key_interval?,
        keys_max: keys_max?,
        leading: leading?,
    })
}

pub(super) fn lease(reader: &mut Reader<'_>) -> Option<Lease> {
    let mut section = reader.section("lease");
    let ttl = section.duration("ttl", "10s", SECOND..=HOUR);
    let default = default_holder();
    let holder = section.parsed("holder", Some(&default), "a name", |text| {
        if text.len() <= 200 && !text.chars().any(char::is_control) {
            Ok(text.to_owned())
        } else {
            Err(Complaint::new(
                "is longer than 200 bytes or holds a control character",
                "give it a short name of this process, such as its pod's name",
            ))
        }
    });
    section.default_varies();
    Some(Lease {
        ttl: ttl?,
        holder: holder?,
    })
}

pub(super) fn retry(reader: &mut Reader<'_>, kv: Option<&Kv>) -> Option<Retry> {
    let mut section = reader.section("retry");
    let initial = section.duration("initial", "200ms", MS..=HOUR);
    let max = section.duration("max", "30s", MS..=HOUR);
    if let (Some(initial), Some(max)) = (initial, max)
        && initial > max
    {
        section.problem(
            "initial",
            Complaint::new(
                "is longer than retry.max",
                "the wait grows from initial to max",
            ),
        );
    }
    let request_timeout = kv.map(|kv| kv.request_timeout);
    let safe = request_timeout.unwrap_or(Duration::from_secs(30)) + LATE_WRITE;
    let default = format!("{}s", safe.as_secs_f64());
    let default = if safe.subsec_nanos() == 0 {
        default
    } else {
        humantime::format_duration(safe).to_string()
    };
    let late_write_window =
        section.duration("late_write_window", &default, Duration::ZERO..=24 * HOUR);
    if late_write_window.is_some_and(|window| window < safe) && request_timeout.is_some() {
        section.warn(
            "late_write_window",
            "is below kv.request_timeout + 120s: a request that Cloudflare finishes late could \
             leave an older value, until the next change or audit",
        );
    }
    Some(Retry {
        initial: initial?,
        max: max?,
        late_write_window: late_write_window?,
    })
}

pub(super) fn backfill(reader: &mut Reader<'_>) -> Option<Backfill> {
    let chunk = reader
        .section("backfill")
        .number("chunk", 10_000_usize, 1..=100_000);
    Some(Backfill { chunk: chunk? })
}

pub(super) fn brake(reader: &mut Reader<'_>) -> Option<Brake> {
    let mut section = reader.section("brake");
    let share = section.share("share", 0.3);
    let count = section.number("count", 1_000_u64, 0..=1_000_000_000);
    let window = section.duration("window", "10m", SECOND..=24 * HOUR);
    Some(Brake {
        share: share?,
        count: count?,
        window: window?,
    })
}

pub(super) fn audit(reader: &mut Reader<'_>) -> Option<Audit> {
    let mut section = reader.section("audit");
    let interval = section.duration("interval", "1d", Duration::ZERO..=365 * 24 * HOUR);
    let page_interval = section.duration("page_interval", "1s", Duration::ZERO..=HOUR);
    let recheck_after = section.duration("recheck_after", "1m", Duration::ZERO..=HOUR);
    Some(Audit {
        interval: interval?,
        page_interval: page_interval?,
        recheck_after: recheck_after?,
    })
}

pub(super) fn shutdown(reader: &mut Reader<'_>) -> Option<Shutdown> {
    let grace = reader
        .section("shutdown")
        .duration("grace", "25s", Duration::ZERO..=HOUR);
    Some(Shutdown { grace: grace? })
}

pub(super) fn ops(reader: &mut Reader<'_>) -> Option<Ops> {
    let mut section = reader.section("ops");
    let expects = "an address with a port";
    let listen = section.parsed("listen", Some("127.0.0.1:9464"), expects, |text| {
        text.parse().map_err(|_| {
            Complaint::new(
                format!("= \"{text}\" is not {expects}"),
                "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\"",
            )
        })
    });
    let hosts = section.optional("hosts", "names of hosts", |text| {
        let names = text.split(',').map(str::trim);
        let names: Vec<String> = names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        match names.iter().find(|name| !name.chars().all(allowed)) {
            None => Ok(names),
            Some(name) => Err(Complaint::new(
                format!("= \"{name}\" is not the name of a host"),
                "write names with commas between, without scheme and port: \"pg2kv.example.com\"",
            )),
        }
    });
    Some(Ops {
        listen: listen?,
        hosts: hosts?.unwrap_or_default(),
    })
}

pub(super) fn log(reader: &mut Reader<'_>) -> Option<Log> {
    let mut section = reader.section("log");
    let format = section.parsed("format", Some("auto"), "auto, json or text", |text| {
        let named = FORMATS.iter().find(|(name, _)| *name == text);
        named.map(|(_, format)| *format).ok_or_else(|| {
            Complaint::new(
                format!("= \"{text}\" is not a format"),
                "choose auto, json or text",
            )
        })
    });
    section.form(Form::OneOf(FORMATS.map(|(name, _)| name).to_vec()));
    let level = section.parsed("level", Some("info"), "a level", |text| {
        match tracing_subscriber::EnvFilter::builder().parse(text) {
            // A word that is no level would be taken for the name of a module.
            Ok(_) if text.contains('=') || text.parse::<tracing::Level>().is_ok() => {
                Ok(text.to_owned())
            }
            _ => Err(Complaint::new(
                format!("= \"{text}\" is not a level"),
                "choose error, warn, info, debug or trace",
            )),
        }
    });
    let keys = section.boolean("keys", false);
    Some(Log {
        format: format?,
        level: level?,
        keys: keys?,
    })
}

impl Section<'_, '_> {
    /// An id of Cloudflare, where set. Outer `None`: a problem was recorded.
    pub(super) fn id(&mut self, key: &'static str, source: &str) -> Option<Option<String>> {
        let found = self.optional(key, "32 hexadecimal digits", |text| {
            NamespaceId::new(text)
                .map(|_| text.to_owned())
                .map_err(|_| {
                    let what = match text.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
                        Some(c) => format!("holds {c:?}, and an id has only 0-9 and a-f"),
                        None => format!("has {} characters, and an id has 32", text.len()),
                    };
                    Complaint::new(what, format!("{source} prints it"))
                })
        });
        self.form(Form::Matching(ID));
        found
    }

    /// The URL of an HTTP proxy, where set. Outer `None`: a problem was recorded.
    fn proxy(&mut self, key: &'static str) -> Option<Option<SecretString>> {
        let Some(found) = self.inline_secret(key) else {
            return (!self.is_set(key)).then_some(None);
        };
        let usable = reqwest::Url::parse(found.expose_secret())
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if usable {
            return Some(Some(found));
        }
        // The value is not repeated: it may hold a password.
        self.problem(
            key,
            Complaint::new("is not the URL of a proxy", "write it as http://HOST:PORT"),
        );
        None
    }
}

/// Whether `text` may name a sync: it becomes part of SQL identifiers.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 31
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

pub(super) fn bad_name(text: &str) -> Complaint {
    Complaint::new(
        format!(
            "= {} is not a name that can be used",
            super::effective::quoted(text)
        ),
        "use a lower-case letter and then up to 30 of a-z, 0-9 and _ (not pg_… for the schema)",
    )
}

/// An error of another room as what is wrong and what to do: those are one sentence with a
/// semicolon between.
pub(super) fn sentence(message: &str) -> (String, String) {
    match message.split_once("; ") {
        Some((what, help)) => (what.to_owned(), help.to_owned()),
        None => (message.to_owned(), "correct the value".to_owned()),
    }
}

fn default_holder() -> String {
    // In a container this is the pod's or container's name. Not the variable HOSTNAME: a shell
    // does not export it.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "localhost",
        host => host,
    };
    format!("{host}-{}", std::process::id())
}
