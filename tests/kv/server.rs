//! A TCP server that follows a script for each connection and records the requests it gets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does next on a connection. After the last step it closes the connection.
pub(super) enum Step {
    /// Reads one whole request.
    Receive,
    /// Reads this many bytes.
    ReceiveBytes(usize),
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes each in a segment of its own.
    Drip(Vec<u8>),
    /// Sends these bytes again and again until the client goes.
    Repeat(Vec<u8>),
    /// Breaks the connection with a TCP reset.
    Reset,
    /// Stays silent, reading nothing, until the test is over.
    Ignore,
    /// Stays silent, reading all, until the client goes.
    Hang,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// Method and target.
    pub(super) fn line(&self) -> &str {
        self.head
            .lines()
            .next()
            .unwrap()
            .trim_end_matches(" HTTP/1.1")
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

#[derive(Default)]
struct Record {
    connections: usize,
    requests: Vec<Request>,
}

pub(super) struct Server {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves the connections in the order of their scripts. A connection beyond them is accepted,
    /// counted and closed.
    pub(super) async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let record = Arc::new(Mutex::new(Record::default()));
        let task = tokio::spawn(accept(listener, scripts, Arc::clone(&record)));
        Self {
            address,
            record,
            task,
        }
    }

    /// Serves one connection.
    pub(super) async fn once(script: Vec<Step>) -> Self {
        Self::start(vec![script]).await
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/client/v4", self.address)
    }

    pub(super) fn connections(&self) -> usize {
        self.record.lock().unwrap().connections
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.record.lock().unwrap().requests.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, scripts: Vec<Vec<Step>>, record: Arc<Mutex<Record>>) {
    let mut scripts = scripts.into_iter();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        record.lock().unwrap().connections += 1;
        let script = scripts.next().unwrap_or_default();
        tokio::spawn(follow(stream, script, Arc::clone(&record)));
    }
}

/// A client that goes away in the middle of a script ends it.
async fn follow(mut stream: TcpStream, script: Vec<Step>, record: Arc<Mutex<Record>>) {
    stream.set_nodelay(true).unwrap();
    for step in script {
        let done = match step {
            Step::Receive => match receive(&mut stream).await {
                Ok(request) => {
                    record.lock().unwrap().requests.push(request);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Step::ReceiveBytes(count) => stream.read_exact(&mut vec![0; count]).await.map(|_| ()),
            Step::Send(bytes) => stream.write_all(&bytes).await,
            Step::Drip(bytes) => drip(&mut stream, &bytes).await,
            Step::Repeat(bytes) => loop {
                if let Err(error) = stream.write_all(&bytes).await {
                    break Err(error);
                }
            },
            Step::Reset => stream.set_zero_linger(),
            Step::Ignore => std::future::pending().await,
            Step::Hang => {
                let mut sink = tokio::io::sink();
                tokio::io::copy(&mut stream, &mut sink).await.map(|_| ())
            }
        };
        if done.is_err() {
            return;
        }
    }
}

async fn drip(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn receive(stream: &mut TcpStream) -> std::io::Result<Request> {
    let mut bytes = Vec::new();
    let head_ends = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(head_ends);
    let mut request = Request {
        head: String::from_utf8(bytes).unwrap(),
        body: Vec::new(),
    };
    let length: usize = request
        .header("content-length")
        .map_or(0, |text| text.parse().unwrap());
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    request.body = body;
    Ok(request)
}

/// A reply with a length, after which the connection may be used again.
pub(super) fn http(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// An envelope of the API.
pub(super) fn envelope(success: bool, code: Option<i64>, result: &str) -> String {
    let error = code.map(|code| format!(r#"{{"code":{code},"message":"canary-key"}}"#));
    format!(
        r#"{{"success":{success},"errors":[{}],"messages":[],"result":{result}}}"#,
        error.unwrap_or_default()
    )
}

/// The result of a bulk request.
pub(super) fn bulk(written: usize, unwritten: &[&str]) -> String {
    let unwritten = serde_json::to_string(unwritten).unwrap();
    format!(r#"{{"successful_key_count":{written},"unsuccessful_keys":{unwritten}}}"#)
}

/// The reply to a bulk request of which all is written.
pub(super) fn written(pairs: usize) -> Vec<u8> {
    http("200 OK", "", envelope(true, None, &bulk(pairs, &[])))
}
