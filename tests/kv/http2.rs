//! HTTP/2, as Cloudflare speaks it: the frames are written by hand, so that the server can refuse a
//! request in the ways that the protocol calls safe to repeat. It is not repeated here all the same.

use std::io::{Read, Write};
use std::thread::JoinHandle;

use pg2kv::change::AmbiguousReason::Broken;
use pg2kv::change::Outcome::{Ambiguous, Written};
use pg2kv::sink::kv::KvClient;

use super::server::{bulk, envelope};
use super::tls::{Authority, Tls, join, serve};
use super::{put, send, settings};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in the static table of header compression.
const STATUS_200: u8 = 0x88;

/// What the server does with each request.
#[derive(Clone, Copy, Debug)]
enum Reaction {
    Reply,
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY that says that no request was begun.
    GoAway,
}

fn send_frame(tls: &mut Tls<'_>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    tls.write_all(&[&head, payload].concat()).unwrap();
    tls.flush().unwrap();
}

/// Serves a connection until the client closes it, and returns how many requests came whole.
fn serve_frames(tls: &mut Tls<'_>, reaction: Reaction) -> usize {
    let mut preface = [0; 24];
    tls.read_exact(&mut preface).unwrap();
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    send_frame(tls, SETTINGS, 0, 0, &[]);
    let mut requests = 0;
    loop {
        let mut head = [0; 9];
        if tls.read_exact(&mut head).is_err() {
            return requests;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        tls.read_exact(&mut payload).unwrap();
        match (head[3], head[4]) {
            (SETTINGS, 0) => send_frame(tls, SETTINGS, ACK, 0, &[]),
            (DATA | HEADERS, flags) if flags & END_STREAM != 0 => {
                requests += 1;
                react(tls, reaction, stream);
            }
            _ => {}
        }
    }
}

fn react(tls: &mut Tls<'_>, reaction: Reaction, stream: u32) {
    match reaction {
        Reaction::Reply => {
            let body = envelope(true, None, &bulk(2, &[]));
            send_frame(tls, HEADERS, END_HEADERS, stream, &[STATUS_200]);
            send_frame(tls, DATA, END_STREAM, stream, body.as_bytes());
        }
        Reaction::Reset(code) => send_frame(tls, RST_STREAM, 0, stream, &code.to_be_bytes()),
        Reaction::GoAway => send_frame(tls, GOAWAY, 0, 0, &[0; 8]),
    }
}

fn start(reaction: Reaction) -> (KvClient, JoinHandle<usize>) {
    let authority = Authority::new("trusted");
    let mut config = authority.server("127.0.0.1", 2020, 2120);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (address, server) = serve(config, move |tls| serve_frames(tls, reaction));
    let mut settings = settings(format!("https://{address}/client/v4"));
    settings.root_certificate = Some(authority.file());
    (KvClient::new(settings).unwrap(), server)
}

#[tokio::test]
async fn requests_share_a_connection() {
    let (client, server) = start(Reaction::Reply);
    for _ in 0..3 {
        assert_eq!(send(&client, &put(2)).await.outcome, Written);
    }
    drop(client);
    assert_eq!(join(server).await, 3);
}

#[tokio::test]
async fn a_refused_request_is_in_doubt_and_not_sent_again() {
    const INTERNAL_ERROR: u32 = 2;
    const REFUSED_STREAM: u32 = 7;
    for reaction in [
        Reaction::Reset(INTERNAL_ERROR),
        Reaction::Reset(REFUSED_STREAM),
        Reaction::GoAway,
    ] {
        let (client, server) = start(reaction);
        let answer = send(&client, &put(2)).await;
        assert_eq!(
            answer.outcome,
            Ambiguous(Broken),
            "{reaction:?}: {}",
            answer.detail
        );
        drop(client);
        assert_eq!(join(server).await, 1, "{reaction:?}");
    }
}
