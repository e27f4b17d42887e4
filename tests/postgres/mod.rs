//! Edges against a real PostgreSQL.

mod kit;
mod source;
