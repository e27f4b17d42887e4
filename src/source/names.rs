//! Every name in our SQL gets its schema before it is sent: functions, operators, types, collations
//! and catalogs.
//!
//! The constants of this room are written as plain SQL, `where id = $1::int8`; the server is sent
//! `where id operator(pg_catalog.=) $1::pg_catalog.int8`. So what a `search_path` holds never decides
//! what a statement of ours does, and nobody has to remember that: [`Client`] is the only way to send
//! one. Names of our own objects carry their schema in the constants.
//!
//! `operator(...)` has one precedence for all operators, so an expression must not mix different ones
//! without parentheses, and forms that hide an operator (`in`, `between`, `is distinct from`,
//! `nullif`, `case x when`, `like`) have no qualified spelling. [`problems`] finds both. Every
//! statement that a debug build sends is checked, and a test checks every constant.
//!
//! What is not ours, an operator's expression or an identifier that the catalog has quoted, is
//! [`verbatim`].

use std::fmt::Write as _;

use tokio_postgres::types::{BorrowToSql, ToSql};
use tokio_postgres::{Error, Row, RowStream, SimpleQueryMessage, Statement};

/// Words of the grammar that stand before a parenthesis and are no functions.
const GRAMMAR: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "as",
    "by",
    "case",
    "coalesce",
    "conflict",
    "distinct",
    "else",
    "except",
    "exists",
    "extract",
    "filter",
    "from",
    "greatest",
    "in",
    "into",
    "intersect",
    "interval",
    "is",
    "key",
    "lateral",
    "least",
    "limit",
    "materialized",
    "not",
    "nullif",
    "offset",
    "on",
    "operator",
    "or",
    "over",
    "returning",
    "row",
    "select",
    "set",
    "then",
    "union",
    "using",
    "values",
    "when",
    "where",
    "with",
];
/// Types that the grammar knows, whatever the search path is.
const GRAMMAR_TYPES: &[&str] = &[
    "bigint", "bit", "boolean", "double", "integer", "interval", "numeric", "real", "smallint",
];
/// Words between which an expression ends.
const ENDS: &[&str] = &[
    "and",
    "as",
    "by",
    "conflict",
    "do",
    "else",
    "from",
    "having",
    "is",
    "join",
    "limit",
    "not",
    "offset",
    "on",
    "or",
    "returning",
    "select",
    "set",
    "then",
    "union",
    "using",
    "values",
    "when",
    "where",
    "with",
];
const VERBATIM: [char; 2] = ['\u{2}', '\u{3}'];

/// Text that goes to the server as it is, inside SQL that is qualified.
pub(crate) fn verbatim(text: &str) -> String {
    format!("{}{text}{}", VERBATIM[0], VERBATIM[1])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Spaces and comments.
    Space,
    /// What is taken as a whole: strings, numbers, parameters, quoted names, what is verbatim.
    Whole,
    Word,
    Operator,
    /// `::`, parentheses, commas and the like.
    Mark,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    /// Parentheses around it.
    depth: usize,
}

/// `sql` with the schema of each name.
pub fn qualified(sql: &str) -> String {
    let tokens = tokens(sql);
    debug_assert_eq!(find_problems(&tokens), Vec::<String>::new(), "{sql}");
    let mut out = String::with_capacity(sql.len() * 2);
    let mut assigns = None;
    for (at, token) in tokens.iter().enumerate() {
        assigns = assignments(assigns, token);
        let text = token.text;
        let written = match what(&tokens, at, assigns) {
            Part::Plain if text.starts_with(VERBATIM[0]) => {
                write!(out, "{}", text.replace(VERBATIM, ""))
            }
            Part::Plain => write!(out, "{text}"),
            Part::Name => write!(out, "pg_catalog.{text}"),
            // Apart from what stands beside it: `key::jsonb->0`.
            Part::Operator => write!(out, " operator(pg_catalog.{text}) "),
        };
        debug_assert!(written.is_ok(), "a string takes what is written to it");
    }
    out
}

/// What has no qualified spelling in `sql`, or would mean something else with one.
pub fn problems(sql: &str) -> Vec<String> {
    find_problems(&tokens(sql))
}

/// What becomes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Plain,
    /// The name of a function, type, collation or catalog.
    Name,
    Operator,
}

/// At which depth `name = value` assigns, after `token`: in what follows `update ... set`.
fn assignments(before: Option<usize>, token: &Token<'_>) -> Option<usize> {
    match token.text.to_ascii_lowercase().as_str() {
        "set" => Some(token.depth),
        "where" | "from" | "returning" if before == Some(token.depth) => None,
        ";" => None,
        _ => before.filter(|depth| token.depth >= *depth),
    }
}

fn what(tokens: &[Token<'_>], at: usize, assigns: Option<usize>) -> Part {
    let token = tokens[at];
    let (before, after) = (near(tokens, at, -1), near(tokens, at, 1));
    let before_text = before.map_or("", |token| token.text);
    let after_text = after.map_or("", |token| token.text);
    if before_text == "." {
        return Part::Plain;
    }
    let lower = token.text.to_ascii_lowercase();
    match token.kind {
        Kind::Whole if before_text.eq_ignore_ascii_case("collate") => Part::Name,
        Kind::Word if after_text == "." => match lower.as_str() {
            "pg_catalog" => Part::Plain,
            name if name.starts_with("pg_") => Part::Name,
            _ => Part::Plain,
        },
        Kind::Word if before_text == "::" => match GRAMMAR_TYPES.contains(&lower.as_str()) {
            true => Part::Plain,
            false => Part::Name,
        },
        Kind::Word if lower.starts_with("pg_") => Part::Name,
        Kind::Word if after_text == "(" => {
            let plain = GRAMMAR.contains(&lower.as_str())
                || before_text.eq_ignore_ascii_case("as")
                || names_query(tokens, at)
                || lower == "unnest" && has_arguments(tokens, at);
            if plain { Part::Plain } else { Part::Name }
        }
        Kind::Operator => match token.text {
            "=>" => Part::Plain,
            // Of all columns, or of rows that are counted.
            "*" if [",", "(", "."].contains(&before_text)
                || before_text.eq_ignore_ascii_case("select") =>
            {
                Part::Plain
            }
            "-" if signs(before, after) => Part::Plain,
            "=" if assigns == Some(token.depth) && {
                let earlier = near(tokens, at, -2).map_or("", |token| token.text);
                before.is_some_and(|token| token.kind == Kind::Word)
                    && (earlier == "," || earlier.eq_ignore_ascii_case("set"))
            } =>
            {
                Part::Plain
            }
            _ => Part::Operator,
        },
        _ => Part::Plain,
    }
}

/// Whether a minus between these is the sign of a number.
fn signs(before: Option<Token<'_>>, after: Option<Token<'_>>) -> bool {
    let number =
        after.is_some_and(|token| token.text.starts_with(|first: char| first.is_ascii_digit()));
    number && !before.is_some_and(is_operand)
}

/// Whether an operator that follows this has it on its left.
fn is_operand(token: Token<'_>) -> bool {
    match token.kind {
        Kind::Whole => true,
        Kind::Word => !ENDS.contains(&token.text.to_ascii_lowercase().as_str()),
        Kind::Mark => token.text == ")" || token.text == "]",
        Kind::Space | Kind::Operator => false,
    }
}

/// Whether the word at `at` is the name of a query, with its columns: `with name(a, b) as (...)`.
fn names_query(tokens: &[Token<'_>], at: usize) -> bool {
    let depth = tokens[at].depth;
    let mut behind = tokens[at + 1..]
        .iter()
        .filter(|token| token.kind != Kind::Space)
        .skip_while(|token| token.text != ")" || token.depth != depth)
        .skip(1);
    let named = behind.next().is_some_and(|token| token.text == "as");
    let query = ["(", "materialized", "not"];
    named
        && behind
            .next()
            .is_some_and(|token| query.contains(&token.text))
}

/// Whether the function at `at` is given several values. `unnest` of several is the grammar's own: it
/// takes `pg_catalog.unnest` of each, whatever the search path is, and knows no other spelling.
fn has_arguments(tokens: &[Token<'_>], at: usize) -> bool {
    let depth = tokens[at].depth;
    let mut inside = tokens[at + 1..]
        .iter()
        .take_while(|token| token.text != ")" || token.depth != depth);
    inside.any(|token| token.text == "," && token.depth == depth + 1)
}

/// The token so many places away, not counting spaces.
fn near<'a>(tokens: &[Token<'a>], at: usize, places: isize) -> Option<Token<'a>> {
    let solid = |token: &&Token<'a>| token.kind != Kind::Space;
    let nth = places.unsigned_abs() - 1;
    if places < 0 {
        tokens[..at].iter().rev().filter(solid).nth(nth).copied()
    } else {
        tokens[at + 1..].iter().filter(solid).nth(nth).copied()
    }
}

fn find_problems(tokens: &[Token<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    // The operator of the expression that is open at each depth of parentheses.
    let mut open: Vec<Option<&str>> = vec![None];
    let mut assigns = None;
    for (at, token) in tokens.iter().enumerate() {
        assigns = assignments(assigns, token);
        let lower = token.text.to_ascii_lowercase();
        let text = |places| {
            near(tokens, at, places).map_or(String::new(), |t| t.text.to_ascii_lowercase())
        };
        match token.kind {
            Kind::Mark => match token.text {
                "(" | "[" => open.push(None),
                ")" | "]" => shut(&mut open),
                "," | ";" => drop(open.last_mut().and_then(Option::take)),
                _ => {}
            },
            Kind::Word if text(-1) == "." => {}
            Kind::Word => {
                let hides = match lower.as_str() {
                    "in" | "between" | "nullif" | "like" | "ilike" | "similar" | "natural"
                    | "cast" => true,
                    "distinct" => ["is", "not"].contains(&text(-1).as_str()),
                    "using" => text(1) == "(",
                    "case" => text(1) != "when",
                    _ => false,
                };
                if hides {
                    found.push(format!("`{lower}` hides a name that has no schema"));
                }
                if lower == "case" {
                    open.push(None);
                } else if lower == "end" {
                    shut(&mut open);
                } else if ENDS.contains(&lower.as_str())
                    && let Some(operator) = open.last_mut()
                {
                    *operator = None;
                }
            }
            Kind::Operator if what(tokens, at, assigns) == Part::Operator => {
                let takes_apart = |operator: &str| operator == "->" || operator == "->>";
                match open.last_mut() {
                    Some(Some(before))
                        if *before != token.text
                            && !(takes_apart(before) && takes_apart(token.text)) =>
                    {
                        found.push(format!(
                            "`{before}` and `{}` in one expression need parentheses",
                            token.text
                        ));
                    }
                    Some(before) => *before = Some(token.text),
                    None => {}
                }
                // A part of a statement may begin with one.
                let operand = near(tokens, at, -1).is_none_or(is_operand);
                if !operand {
                    found.push(format!("`{}` has no left operand", token.text));
                }
            }
            _ => {}
        }
    }
    found
}

/// Leaves one pair of parentheses. A part of a statement may end more than it begins.
fn shut(open: &mut Vec<Option<&str>>) {
    open.pop();
    if open.is_empty() {
        open.push(None);
    }
}

/// Cuts `sql` at every boundary; together the tokens are all of it.
fn tokens(sql: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::with_capacity(sql.len() / 4);
    let (mut rest, mut depth) = (sql, 0_usize);
    while let Some(first) = rest.chars().next() {
        let (kind, length) = token(rest, first);
        let (text, behind) = rest.split_at(length.clamp(first.len_utf8(), rest.len()));
        if text == ")" || text == "]" {
            depth = depth.saturating_sub(1);
        }
        tokens.push(Token { kind, text, depth });
        if text == "(" || text == "[" {
            depth += 1;
        }
        rest = behind;
    }
    tokens
}

/// Kind and length of the token that `rest` begins with.
fn token(rest: &str, first: char) -> (Kind, usize) {
    let until = |stop: &dyn Fn(char) -> bool| rest.find(stop).unwrap_or(rest.len());
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let is_operator = |character: char| "+-*/<>=~!@#%^&|?".contains(character);
    match first {
        ' ' | '\n' | '\t' | '\r' => (Kind::Space, until(&|c| !c.is_ascii_whitespace())),
        '-' if rest.starts_with("--") => (Kind::Space, until(&|c| c == '\n')),
        '\'' | '"' => (Kind::Whole, quoted(rest, first)),
        // What a test reads instead of the text that comes here.
        '{' => (
            Kind::Whole,
            rest.find('}').map_or(rest.len(), |end| end + 1),
        ),
        first if first == VERBATIM[0] => (Kind::Whole, nested(rest)),
        '$' => (
            Kind::Whole,
            1 + rest[1..]
                .find(|c: char| !is_word(c))
                .unwrap_or(rest.len() - 1),
        ),
        first if first.is_ascii_digit() => (Kind::Whole, until(&|c| !is_word(c) && c != '.')),
        first if is_word(first) => (Kind::Word, until(&|c| !is_word(c))),
        ':' if rest.starts_with("::") => (Kind::Mark, 2),
        first if is_operator(first) => (Kind::Operator, until(&|c| !is_operator(c))),
        _ => (Kind::Mark, first.len_utf8()),
    }
}

/// Length of a string or a quoted name; its quote is doubled inside.
fn quoted(rest: &str, quote: char) -> usize {
    let mut from = 1;
    while let Some(end) = rest[from..].find(quote) {
        from += end + 1;
        if !rest[from..].starts_with(quote) {
            return from;
        }
        from += 1;
    }
    rest.len()
}

/// Length of what is verbatim, with all that is verbatim inside.
fn nested(rest: &str) -> usize {
    let mut open = 0;
    for (at, character) in rest.char_indices() {
        open += i32::from(character == VERBATIM[0]) - i32::from(character == VERBATIM[1]);
        if open == 0 {
            return at + character.len_utf8();
        }
    }
    rest.len()
}

/// The driver's client, which qualifies every statement that it is given as text.
pub(crate) struct Client(tokio_postgres::Client);

/// A statement: text, or prepared from text that was qualified then.
pub(crate) trait Sql {
    fn prepared(&self) -> Result<&Statement, String>;
}

impl Sql for Statement {
    fn prepared(&self) -> Result<&Statement, String> {
        Ok(self)
    }
}

impl Sql for str {
    fn prepared(&self) -> Result<&Statement, String> {
        Err(qualified(self))
    }
}

impl Sql for String {
    fn prepared(&self) -> Result<&Statement, String> {
        Err(qualified(self))
    }
}

impl Client {
    pub(crate) fn new(client: tokio_postgres::Client) -> Self {
        Self(client)
    }

    pub(crate) async fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        self.0.prepare(&qualified(sql)).await
    }

    pub(crate) async fn query(
        &self,
        sql: &(impl Sql + ?Sized),
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        match sql.prepared() {
            Ok(statement) => self.0.query(statement, parameters).await,
            Err(text) => self.0.query(&text, parameters).await,
        }
    }

    pub(crate) async fn query_one(
        &self,
        sql: &(impl Sql + ?Sized),
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Error> {
        match sql.prepared() {
            Ok(statement) => self.0.query_one(statement, parameters).await,
            Err(text) => self.0.query_one(&text, parameters).await,
        }
    }

    pub(crate) async fn query_opt(
        &self,
        sql: &(impl Sql + ?Sized),
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        match sql.prepared() {
            Ok(statement) => self.0.query_opt(statement, parameters).await,
            Err(text) => self.0.query_opt(&text, parameters).await,
        }
    }

    pub(crate) async fn query_raw<P, I>(
        &self,
        sql: &(impl Sql + ?Sized),
        parameters: I,
    ) -> Result<RowStream, Error>
    where
        P: BorrowToSql,
        I: IntoIterator<Item = P>,
        I::IntoIter: ExactSizeIterator,
    {
        match sql.prepared() {
            Ok(statement) => self.0.query_raw(statement, parameters).await,
            Err(text) => self.0.query_raw(&text, parameters).await,
        }
    }

    pub(crate) async fn execute(
        &self,
        sql: &(impl Sql + ?Sized),
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        match sql.prepared() {
            Ok(statement) => self.0.execute(statement, parameters).await,
            Err(text) => self.0.execute(&text, parameters).await,
        }
    }

    /// Commands that resolve no names (`begin`, `set`, `listen`), sent as they are.
    pub(crate) async fn batch_execute(&self, commands: &str) -> Result<(), Error> {
        self.0.batch_execute(commands).await
    }

    /// By the simple protocol, which a pooler cannot break.
    pub(crate) async fn simple_query(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        self.0.simple_query(&qualified(sql)).await
    }

    /// Runs a file of the SQL kit as it is.
    pub(crate) async fn run_file(&self, sql: &str) -> Result<(), Error> {
        self.0.simple_query(sql).await.map(drop)
    }
}

#[cfg(test)]
mod tests;
