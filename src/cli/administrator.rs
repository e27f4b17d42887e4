//! How verbs for administrators connect: `--database-url` or `--database-url-file`, and a password from where
//! psql takes it.
//!
//! Owns libpq's password file. A password need not stand in the arguments, which every user of the
//! machine can read.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{Config, Host};

use super::args::AdministratorArgs;
use super::output::{DOUBT, Failure};
use crate::config::{DatabaseConfig, SqlConfig};
use crate::secret_file;
use crate::source::{Settings, parse_url};

/// Largest file that is read, in bytes: a wrong path must not fill the memory.
const FILE_MAX_BYTES: u64 = 1 << 20;

impl AdministratorArgs {
    /// Whether somebody else than the configured user connects.
    pub(super) fn is_given(&self) -> bool {
        self.database_url.is_some() || self.database_url_file.is_some()
    }
}

/// How to connect as somebody else than the daemon: TLS and limits as configured, where they are.
/// `None` where the arguments name nobody.
pub(super) fn administrator(
    args: &AdministratorArgs,
    database: Option<&DatabaseConfig>,
    config: &SqlConfig,
) -> Result<Option<Settings>, Failure> {
    let (argument, url) = match (&args.database_url, &args.database_url_file) {
        (Some(url), _) => ("--database-url", url.clone()),
        (None, Some(path)) => ("--database-url-file", url_in(path)?),
        (None, None) => return Ok(None),
    };
    let postgres = database.map(|database| &database.postgres);
    let roots = postgres.and_then(|postgres| postgres.root_certificate.as_deref());
    let allow_plaintext = postgres.is_some_and(|postgres| postgres.allow_plaintext);
    let (mut connection, tls) = parse_url(&url, roots, allow_plaintext)
        .map_err(|error| Failure::usage(format!("{argument} cannot be used: {error}")))?;
    if connection.get_password().is_none()
        && let Some(password) = password(&connection, |name| std::env::var_os(name))?
    {
        connection.password(password);
    }
    Ok(Some(match database {
        Some(database) => Settings {
            config: connection,
            // The configured one is the daemon's.
            password: None,
            tls,
            ..database.source_settings()
        },
        None => Settings {
            config: connection,
            // The configured one is the daemon's.
            password: None,
            tls,
            schema: config.schema.as_str().to_owned(),
            doorbell: true,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lease_ttl: Duration::from_secs(10),
            poll_interval: Duration::from_secs(5),
        },
    }))
}

fn url_in(path: &Path) -> Result<String, Failure> {
    let named = path.display();
    let text = secret_file::open(path).and_then(|file| read(&file));
    let text = text.map_err(|error| {
        Failure::usage(format!(
            "--database-url-file {named} cannot be read: {error}"
        ))
    })?;
    if let Some(what) = secret_file::exposure(path) {
        warn(&format!("--database-url-file names {named}, which {what}"))?;
    }
    match text.trim() {
        url if !url.is_empty() && !url.contains('\n') => Ok(url.to_owned()),
        _ => Err(Failure::usage(format!(
            "--database-url-file {named} must hold one line: the connection string"
        ))),
    }
}

fn read(file: &std::fs::File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn warn(what: &str) -> std::io::Result<()> {
    writeln!(anstream::stderr(), "{DOUBT}warning:{DOUBT:#} {what}")
}

/// The password where libpq looks for it: PGPASSWORD, then the password file.
/// Source: PostgreSQL documentation, libpq, "The Password File".
fn password(
    connection: &Config,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<String>, Failure> {
    if let Some(password) = variable("PGPASSWORD").filter(|it| !it.is_empty()) {
        let password = password.into_string();
        return password
            .map(Some)
            .map_err(|_| Failure::usage("PGPASSWORD is not UTF-8"));
    }
    let named = variable("PGPASSFILE").filter(|it| !it.is_empty());
    let Some(path) = named.map(PathBuf::from).or_else(|| {
        let home = variable("HOME").filter(|it| !it.is_empty())?;
        Some(Path::new(&home).join(".pgpass"))
    }) else {
        return Ok(None);
    };
    let ignored = |why: &str| {
        warn(&format!(
            "the password file {} is ignored: {why}",
            path.display()
        ))
    };
    let file = match secret_file::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            ignored(&error.to_string())?;
            return Ok(None);
        }
    };
    if !secret_file::is_private(&file)? {
        ignored("others than its owner may use it; run `chmod 0600` on it")?;
        return Ok(None);
    }
    match read(&file) {
        Ok(text) => Ok(places(connection).find_map(|place| find(&text, &place))),
        Err(error) => {
            ignored(&error.to_string())?;
            Ok(None)
        }
    }
}

/// Host, port, database and user of each host that the connection may use.
fn places(connection: &Config) -> impl Iterator<Item = [String; 4]> {
    let login = || std::env::var("USER").unwrap_or_default();
    let user = connection.get_user().map_or_else(login, str::to_owned);
    let database = connection.get_dbname().unwrap_or(&user).to_owned();
    let ports = connection.get_ports();
    connection
        .get_hosts()
        .iter()
        .enumerate()
        .map(move |(at, host)| {
            let host = match host {
                Host::Tcp(name) => name.clone(),
                // libpq writes localhost for the socket directory that it was built with; there are two.
                Host::Unix(path)
                    if ["/tmp", "/var/run/postgresql"]
                        .map(Path::new)
                        .contains(&path.as_path()) =>
                {
                    "localhost".to_owned()
                }
                Host::Unix(path) => path.display().to_string(),
            };
            let port = ports.get(at).or(ports.first()).copied().unwrap_or(5_432);
            [host, port.to_string(), database.clone(), user.clone()]
        })
}

/// The password of the first line whose four fields match.
fn find(text: &str, place: &[String; 4]) -> Option<String> {
    text.lines().find_map(|line| {
        let fields = fields(line.trim_end_matches('\r'));
        let [host, port, database, user, password] = fields.try_into().ok()?;
        let given = [host, port, database, user];
        let matches = |(given, wanted): (&Field, &String)| given.any || given.text == *wanted;
        let matched = given.iter().zip(place).all(matches);
        (matched && !password.text.is_empty()).then_some(password.text)
    })
}

#[derive(Default)]
struct Field {
    text: String,
    /// It is a bare `*`.
    any: bool,
}

/// The fields of a line. `\` takes the next character for what it is; the fifth field goes on to the
/// end, so that a password may hold `:`.
fn fields(line: &str) -> Vec<Field> {
    let mut fields = Vec::new();
    if line.starts_with('#') {
        return fields;
    }
    let mut field = Field::default();
    let mut escaped = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                escaped = true;
                field.text.extend(chars.next());
            }
            ':' if fields.len() < 4 => {
                field.any = field.text == "*" && !escaped;
                fields.push(std::mem::take(&mut field));
                escaped = false;
            }
            c => field.text.push(c),
        }
    }
    fields.push(field);
    fields
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FILE: &str = "# host:port:database:user:password\n\
        db.example:5432:app:postgres:plain\n\
        db.example:5433:*:postgres:a\\:b:c\\\\d\n\
        \\*:5432:*:*:only a host of that name\n\
        ::1:5432:*:v6:not reached, for its colons part fields\n\
        \\:\\:1:5432:*:v6:v6\n\
        localhost:*:*:socket:by socket\r\n\
        *:*:other:*:any host\n\
        short:line\n";

    fn found(url: &str) -> Option<String> {
        let (connection, _) = parse_url(url, None, true).unwrap();
        places(&connection).find_map(|place| find(FILE, &place))
    }

    #[test]
    fn the_first_matching_line_of_a_password_file_counts() {
        for (url, password) in [
            ("postgres://postgres@db.example/app", Some("plain")),
            ("postgres://postgres@db.example/else", None),
            ("postgres://postgres@db.example:5433/else", Some("a:b:c\\d")),
            ("postgres://postgres@db2.example/other", Some("any host")),
            ("postgres://postgres@db2.example/app", None),
            ("postgres://v6@[::1]/app", Some("v6")),
            ("postgres://socket@%2Ftmp/app", Some("by socket")),
            ("postgres://socket@%2Fsrv/app", None),
            (
                "postgres://postgres@db2.example,db.example/app",
                Some("plain"),
            ),
        ] {
            assert_eq!(found(url).as_deref(), password, "{url}");
        }
    }

    #[test]
    fn the_variable_comes_first_and_a_file_for_all_is_ignored() {
        let (connection, _) = parse_url("postgres://postgres@db.example/app", None, true).unwrap();
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".pgpass");
        let password = |variables: &[(&str, &Path)]| {
            let found = password(&connection, |name| {
                let found = variables.iter().find(|(known, _)| *known == name)?;
                Some(found.1.into())
            });
            found.ok().unwrap()
        };
        let at_home = [("HOME", home.path())];
        assert_eq!(password(&at_home), None);
        std::fs::write(&file, FILE).unwrap();
        for (mode, expected) in [(0o640, None), (0o604, None), (0o600, Some("plain"))] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(password(&at_home).as_deref(), expected, "{mode:o}");
        }
        assert_eq!(password(&[("PGPASSFILE", &file)]).as_deref(), Some("plain"));
        let both = [
            ("PGPASSFILE", file.as_path()),
            ("PGPASSWORD", Path::new("first")),
        ];
        assert_eq!(password(&both).as_deref(), Some("first"));
    }
}
