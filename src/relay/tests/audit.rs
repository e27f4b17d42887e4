//! When KV is compared with the rows, and what becomes of what is found.
