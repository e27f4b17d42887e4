//! Connection strings: which TLS they ask for, and what the driver gets to see.
//!
//! Owns `sslmode` and `sslrootcert`, which the driver does not know in full, and the rule that
//! nothing but a loopback host is spoken to in plain text. Opens no socket and reads no file.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// How the server's identity is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Plain text: Unix sockets, loopback, or on the operator's own word.
    Disable,
    /// Encrypted, and the server's certificate chain is verified.
    Verified {
        /// Certificates to trust, a PEM file; `None` means those of the platform.
        roots: Option<PathBuf>,
        /// Whether the certificate must also name the host.
        verify_host: bool,
    },
}

/// Why a connection string cannot be used. Never quotes the string: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme than PostgreSQL's, such as one of SQLAlchemy or JDBC.
    #[error(
        "the connection string begins with {scheme:?}; write it as \
         postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full"
    )]
    Scheme {
        /// The scheme with its `://`.
        scheme: String,
    },
    /// An option that neither the driver nor this module knows. Its name is not repeated: where a password
    /// is not encoded, a part of it looks like one.
    #[error(
        "the connection string has an option that pg2kv does not know{}",
        suggestion.map_or_else(
            || "; remove it, and write `?`, `&`, `@` and spaces in a password percent-encoded".to_owned(),
            |known| format!("; did you mean {known:?}?")
        )
    )]
    UnknownOption {
        /// The nearest option that is known.
        suggestion: Option<&'static str>,
    },
    /// An option of libpq that this program does not offer.
    #[error("option {option:?} of the connection string is not supported: {why}")]
    Unsupported {
        /// The option.
        option: String,
        /// What to do instead.
        why: &'static str,
    },
    /// A value that its option does not take.
    #[error("option {option:?} of the connection string must be {expected}")]
    InvalidValue {
        /// The option.
        option: String,
        /// What it takes.
        expected: &'static str,
    },
    /// The string as a whole does not parse.
    #[error("the connection string does not parse: {0}")]
    Syntax(String),
    /// No host is named.
    #[error("the connection string names no host; a Unix socket is a host that begins with \"/\"")]
    NoHost,
    /// Plain text to a host that is not this one.
    #[error(
        "host {0:?} is not a loopback address and TLS is off (sslmode=disable); use \
         sslmode=verify-full, or allow plain text in the configuration"
    )]
    Plaintext(String),
    /// `verify-ca` needs roots of its own.
    #[error(
        "sslmode=verify-ca needs sslrootcert: a file with the certificate authority's \
             certificate in PEM"
    )]
    NoRoots,
    /// The string and the configuration name different files.
    #[error(
        "the root certificate is given twice and differs: sslrootcert in the connection \
             string, and the configuration"
    )]
    TwoRoots,
    /// Unix sockets and TLS hosts in one list.
    #[error("the connection string mixes Unix sockets with hosts that need TLS")]
    MixedHosts,
}

/// Reads a connection string in either of libpq's forms (`postgres://…` or `key=value …`).
///
/// `sslmode` means here:
/// - `disable`: plain text; refused for a host that is not loopback unless `allow_plaintext`.
/// - absent, `allow`, `prefer`: plain text to loopback hosts, `verify-full` to all others. There is
///   no silent fallback from TLS to plain text.
/// - `require`: encrypted, and as there are always roots (the platform's where no file is named),
///   chain and host name are verified; libpq would verify nothing.
/// - `verify-ca`: the chain up to `sslrootcert`, any host name.
/// - `verify-full`: chain and host name.
///
/// Over Unix sockets there is no TLS, whatever `sslmode` says, as in libpq. `root_certificate` is
/// the configuration's file; the string's `sslrootcert` serves where the configuration is silent
/// (`sslrootcert=system` names the platform's roots).
///
/// Where the string is silent, keepalives begin after 30 s, unacknowledged data ends a connection
/// after 30 s, and only a server that takes writes is accepted.
///
/// # Errors
/// [`UrlError`], which never quotes the string.
pub fn parse_url(
    url: &str,
    root_certificate: Option<&Path>,
    allow_plaintext: bool,
) -> Result<(Config, TlsMode), UrlError> {
    let (rest, options) = match scheme(url) {
        Some("postgres" | "postgresql") => split_url(url)?,
        Some(scheme) => {
            return Err(UrlError::Scheme {
                scheme: format!("{scheme}://"),
            });
        }
        None => split_pairs(url)?,
    };
    let mut tls = TlsOptions::default();
    let mut seen = Vec::new();
    for (name, value) in options {
        tls.take(&name, value)?;
        seen.push(name);
    }
    let mut config: Config = rest.parse().map_err(|error| syntax(&error))?;
    let given = |name: &str| seen.iter().any(|seen| seen == name);
    if !given("keepalives_idle") {
        config.keepalives_idle(Duration::from_secs(30));
    }
    if !given("keepalives_interval") {
        config.keepalives_interval(Duration::from_secs(10));
    }
    if !given("keepalives_retries") {
        config.keepalives_retries(3);
    }
    if !given("tcp_user_timeout") {
        config.tcp_user_timeout(Duration::from_secs(30));
    }
    if !given("application_name") {
        config.application_name("pg2kv");
    }
    if !given("target_session_attrs") {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    } else if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
        return Err(UrlError::Unsupported {
            option: "target_session_attrs=read-only".to_owned(),
            why: "the daemon writes to its own tables; remove the option",
        });
    }
    let mode = tls.decide(&config, root_certificate, allow_plaintext)?;
    config.ssl_mode(match mode {
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Verified { .. } => SslMode::Require,
    });
    Ok((config, mode))
}

/// Options that the driver takes; the others are ours or unknown.
const DRIVER_OPTIONS: &[&str] = &[
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];
const OUR_OPTIONS: &[&str] = &["sslmode", "sslrootcert", "gssencmode"];

type Options = Vec<(String, String)>;

/// What stands before `://`, if it has the form of a scheme; JDBC has two, `jdbc:postgresql`.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once("://")?;
    let name = scheme.strip_prefix("jdbc:").unwrap_or(scheme);
    let plain = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
    (!name.is_empty() && name.chars().all(plain)).then_some(scheme)
}

/// Takes our options out of the query part of a URL.
fn split_url(url: &str) -> Result<(String, Options), UrlError> {
    // Credentials end at the first '@' for the driver, so a '?' before it belongs to them. After a second
    // one a part of the password would pass for a host, which errors name.
    let from = match url.match_indices('@').collect::<Vec<_>>().as_slice() {
        [] => 0,
        [(at, _)] => at + 1,
        _ => {
            return Err(UrlError::Syntax(
                "it has more than one \"@\"; write those of user name and password as %40"
                    .to_owned(),
            ));
        }
    };
    let Some(mark) = url[from..].find('?').map(|at| from + at) else {
        return Ok((url.to_owned(), Vec::new()));
    };
    let mut kept = Vec::new();
    let mut options = Vec::new();
    for pair in url[mark + 1..].split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            UrlError::Syntax("a part of the query after \"?\" has no \"=\"".to_owned())
        })?;
        let (name, value) = (decode(name)?, decode(value)?);
        if is_driver_option(&name)? {
            kept.push(pair);
        }
        options.push((name, value));
    }
    let mut rest = url[..mark].to_owned();
    if !kept.is_empty() {
        rest.push('?');
        rest.push_str(&kept.join("&"));
    }
    Ok((rest, options))
}

/// Takes our options out of `key=value` pairs; values may be quoted with `'` and escaped with `\`.
fn split_pairs(text: &str) -> Result<(String, Options), UrlError> {
    let mut rest = String::new();
    let mut options = Vec::new();
    let mut chars = text.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let Some(&(start, _)) = chars.peek() else {
            break;
        };
        let mut name = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        if chars.next_if(|(_, c)| *c == '=').is_none() {
            return Err(UrlError::Syntax(
                "it neither begins with postgres:// nor lists option=value (there is a word without \
                 \"=\" after it)"
                    .to_owned(),
            ));
        }
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if(|(_, c)| *c == '\'').is_some();
        let mut value = String::new();
        let mut closed = !quoted;
        while let Some(&(_, c)) = chars.peek() {
            if quoted && c == '\'' {
                chars.next();
                closed = true;
                break;
            }
            if !quoted && c.is_whitespace() {
                break;
            }
            chars.next();
            if c == '\\' {
                value.extend(chars.next().map(|(_, c)| c));
            } else {
                value.push(c);
            }
        }
        if !closed {
            return Err(UrlError::Syntax("a quoted value does not end".to_owned()));
        }
        let end = chars.peek().map_or(text.len(), |&(at, _)| at);
        if is_driver_option(&name)? {
            rest.push_str(&text[start..end]);
            rest.push(' ');
        }
        options.push((name, value));
    }
    Ok((rest, options))
}

fn is_driver_option(name: &str) -> Result<bool, UrlError> {
    if DRIVER_OPTIONS.contains(&name) {
        return Ok(true);
    }
    if OUR_OPTIONS.contains(&name) {
        return Ok(false);
    }
    let why = match name {
        "sslcert" | "sslkey" | "sslpassword" | "sslcertmode" => {
            "client certificates are not offered; use a password"
        }
        "sslcrl" | "sslcrldir" => "revocation lists are not offered",
        "passfile" | "service" => {
            "name host, user and password themselves, or a password file in \
                                   the configuration"
        }
        "krbsrvname" | "gsslib" | "require_auth" | "requiressl" => "remove it",
        "ssl" | "sslaccept" | "sslnegotiate" | "tls" => "write sslmode=verify-full",
        "schema" | "currentSchema" | "search_path" => {
            "every table is named with its schema; remove it"
        }
        "pgbouncer"
        | "prepareThreshold"
        | "connection_limit"
        | "pool_timeout"
        | "pool_size"
        | "statement_cache_size"
        | "prepared_statement_cache_size" => "it belongs to another driver; remove it",
        _ => {
            return Err(UrlError::UnknownOption {
                suggestion: nearest(name),
            });
        }
    };
    Err(UrlError::Unsupported {
        option: name.to_owned(),
        why,
    })
}

fn decode(text: &str) -> Result<String, UrlError> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| UrlError::Syntax("a percent-encoded part is not UTF-8".to_owned()))
}

/// What the driver says. It names options and positions, and quotes one character; a host that it cannot
/// read may be a part of a password, so that character is left out.
fn syntax(error: &tokio_postgres::Error) -> UrlError {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    let cause = cause.unwrap_or_else(|| error.to_string());
    let before = cause.split(" but got").next().unwrap_or_default();
    UrlError::Syntax(before.to_owned())
}

fn nearest(name: &str) -> Option<&'static str> {
    DRIVER_OPTIONS
        .iter()
        .chain(OUR_OPTIONS)
        .map(|known| (strsim::jaro_winkler(name, known), *known))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AskedMode {
    #[default]
    Unsaid,
    Disable,
    VerifyCa,
    VerifyFull,
}

#[derive(Default)]
struct TlsOptions {
    mode: AskedMode,
    roots: Option<String>,
}

impl TlsOptions {
    fn take(&mut self, name: &str, value: String) -> Result<(), UrlError> {
        match name {
            "sslmode" => {
                self.mode = match value.as_str() {
                    "disable" => AskedMode::Disable,
                    "allow" | "prefer" => AskedMode::Unsaid,
                    "verify-ca" => AskedMode::VerifyCa,
                    "require" | "verify-full" => AskedMode::VerifyFull,
                    _ => {
                        return Err(UrlError::InvalidValue {
                            option: name.to_owned(),
                            expected: "disable, prefer, require, verify-ca or verify-full",
                        });
                    }
                };
            }
            "sslrootcert" if !value.is_empty() => self.roots = Some(value),
            "gssencmode" if value == "require" => {
                return Err(UrlError::Unsupported {
                    option: "gssencmode=require".to_owned(),
                    why: "use TLS",
                });
            }
            _ => {}
        }
        Ok(())
    }

    fn decide(
        self,
        config: &Config,
        root_certificate: Option<&Path>,
        allow_plaintext: bool,
    ) -> Result<TlsMode, UrlError> {
        let places = places(config)?;
        if places.iter().all(|place| *place == Place::Unix) {
            return Ok(TlsMode::Disable);
        }
        let far = places.iter().find_map(|place| match place {
            Place::Far(name) => Some(name),
            _ => None,
        });
        let verify_host = match (self.mode, far) {
            (AskedMode::Disable, Some(name)) if !allow_plaintext => {
                return Err(UrlError::Plaintext(name.clone()));
            }
            (AskedMode::Disable, _) | (AskedMode::Unsaid, None) => return Ok(TlsMode::Disable),
            (AskedMode::VerifyCa, _) => false,
            (AskedMode::VerifyFull, _) | (AskedMode::Unsaid, Some(_)) => true,
        };
        if places.contains(&Place::Unix) {
            return Err(UrlError::MixedHosts);
        }
        let in_url = self
            .roots
            .filter(|roots| roots != "system")
            .map(PathBuf::from);
        let roots = match (root_certificate, in_url) {
            (Some(ours), Some(theirs)) if ours != theirs => return Err(UrlError::TwoRoots),
            (Some(ours), _) => Some(ours.to_owned()),
            (None, theirs) => theirs,
        };
        if !verify_host && roots.is_none() {
            return Err(UrlError::NoRoots);
        }
        Ok(TlsMode::Verified { roots, verify_host })
    }
}

/// Where a host is, as far as plain text is concerned.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Unix,
    Loopback,
    Far(String),
}

fn places(config: &Config) -> Result<Vec<Place>, UrlError> {
    // An address, where given, is what is connected to; the name then serves TLS only.
    let addresses = config.get_hostaddrs();
    if !addresses.is_empty() {
        return Ok(addresses
            .iter()
            .map(|address| place_of_address(*address))
            .collect());
    }
    if config.get_hosts().is_empty() {
        return Err(UrlError::NoHost);
    }
    config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) if name.is_empty() => Err(UrlError::NoHost),
            Host::Tcp(name) => Ok(match name.parse::<IpAddr>() {
                Ok(address) => place_of_address(address),
                Err(_) if name == "localhost" || name.ends_with(".localhost") => Place::Loopback,
                Err(_) => Place::Far(name.clone()),
            }),
            Host::Unix(_) => Ok(Place::Unix),
        })
        .collect()
}

fn place_of_address(address: IpAddr) -> Place {
    if address.to_canonical().is_loopback() {
        Place::Loopback
    } else {
        Place::Far(address.to_string())
    }
}

#[cfg(test)]
mod tests;
