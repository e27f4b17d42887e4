//! What somebody does who means harm, or has an accident that looks like it: the whole binary, and what must
//! go on beside the attack.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not the helpers of tests

mod listings;
mod slow_requests;
