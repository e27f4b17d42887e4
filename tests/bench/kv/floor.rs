//! The floor: what it takes to read the documents and to post their bodies, and nothing else.
//!
//! It knows no change, no claim and no failure. Its bodies are pg2kv's own to the byte, because pg2kv
//! makes them: key template, content hash, metadata, JSON.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use pg2kv::change::owner::{InstallationId, Owner};
use pg2kv::change::{Draft, KV_BULK_MAX_PAIRS, Rendered, Value};
use pg2kv::document::{Template, render};
use pg2kv::sink::wire::encode_put;
use reqwest::Client as Http;
use tokio::sync::mpsc;

use super::stand::{Kv, Stand};
use crate::support::world::TOKEN;

/// The documents of [`super::stand::USERS`] as pg2kv has PostgreSQL render them.
const COPY: &str = "copy (
    select u.id, (select row_to_json(o) from (select u.plan, u.flags) as o) from public.users as u
  ) to stdout";
/// Bodies that wait between reading and posting, of [`pipelined`].
const WAITING: usize = 2;

/// What the floor took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    /// From the start of the COPY to its last byte.
    pub(crate) copy: Duration,
    /// From the first request to the last reply. Making the bodies is not part of it.
    pub(crate) post: Duration,
}

impl Floor {
    pub(crate) fn seconds(self) -> f64 {
        (self.copy + self.post).as_secs_f64()
    }
}

/// One after the other: the COPY, and then the requests, one at a time.
pub(crate) async fn sequential(stand: &Stand, kv: &Kv) -> Floor {
    let client = stand.connect().await;
    let began = Instant::now();
    let mut chunks = Vec::new();
    let mut rows = pin!(client.copy_out(COPY).await.unwrap());
    while let Some(chunk) = rows.next().await {
        chunks.push(chunk.unwrap());
    }
    let copy = began.elapsed();

    let mut bodies = Bodies::new();
    let mut made: Vec<Bytes> = chunks
        .into_iter()
        .filter_map(|chunk| bodies.take(&chunk))
        .collect();
    made.extend(bodies.rest());

    let http = http();
    let began = Instant::now();
    for body in made {
        post(&http, kv, body).await;
    }
    Floor {
        copy,
        post: began.elapsed(),
    }
}

/// The same, but reading and making bodies goes on while a request is under way. Returns how long
/// all of it took.
pub(crate) async fn pipelined(stand: &Stand, kv: &Kv) -> Duration {
    let client = stand.connect().await;
    let http = http();
    let (sender, mut receiver) = mpsc::channel(WAITING);
    let began = Instant::now();
    let reading = tokio::spawn(async move {
        let mut bodies = Bodies::new();
        let mut rows = pin!(client.copy_out(COPY).await.unwrap());
        while let Some(chunk) = rows.next().await {
            if let Some(body) = bodies.take(&chunk.unwrap()) {
                sender.send(body).await.unwrap();
            }
        }
        if let Some(body) = bodies.rest() {
            sender.send(body).await.unwrap();
        }
    });
    while let Some(body) = receiver.recv().await {
        post(&http, kv, body).await;
    }
    reading.await.unwrap();
    began.elapsed()
}

fn http() -> Http {
    Http::builder().no_proxy().build().unwrap()
}

async fn post(http: &Http, kv: &Kv, body: Bytes) {
    let request = http.put(kv.bulk_url()).bearer_auth(TOKEN);
    let request = request
        .header("content-type", "application/json")
        .body(body);
    let reply = request.send().await.unwrap().error_for_status().unwrap();
    reply.bytes().await.unwrap();
}

/// Makes bodies of full size of what a COPY sends.
struct Bodies {
    template: Template,
    owner: Owner,
    documents: Vec<pg2kv::change::Document>,
    rest: BytesMut,
}

impl Bodies {
    fn new() -> Self {
        Self {
            template: Template::parse("user:{id}", &["id".to_owned()]).unwrap(),
            owner: Owner::new(InstallationId::parse("0123456789ab").unwrap(), "user"),
            documents: Vec::with_capacity(KV_BULK_MAX_PAIRS),
            rest: BytesMut::new(),
        }
    }

    /// Takes some bytes of the COPY, at most one body of rows; returns a body once one is full.
    fn take(&mut self, chunk: &[u8]) -> Option<Bytes> {
        self.rest.extend_from_slice(chunk);
        let mut full = None;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            let line = std::str::from_utf8(&line[..end]).unwrap();
            let (id, document) = line.split_once('\t').unwrap();
            // These documents need no unescaping.
            assert!(!document.contains('\\'));
            let value = Value::Text(Bytes::copy_from_slice(document.as_bytes()));
            let Rendered::Put(document) = render(
                &self.template,
                self.owner,
                &[id.to_owned()],
                Some(Draft::of(value)),
            ) else {
                panic!("a row without a document");
            };
            self.documents.push(document);
            if self.documents.len() == KV_BULK_MAX_PAIRS {
                assert!(full.is_none(), "a chunk of more than a body");
                full = self.rest();
            }
        }
        full
    }

    /// The rows that do not fill a body.
    fn rest(&mut self) -> Option<Bytes> {
        if self.documents.is_empty() {
            return None;
        }
        let body = encode_put(&self.documents).unwrap();
        self.documents.clear();
        Some(body)
    }
}
