//! Files in a table, as bytes with a MIME type each, come out of the Worker under their paths.

use reqwest::Method;

use super::Way;
use crate::support::wait;
use crate::support::worker::Reply;
use crate::support::world::{NAMESPACE, Plan, Sync};

const PLAN: Plan = Plan {
    sql: r#"create table public.file (
              path text primary key, mime text, content bytea not null, uploaded timestamptz
            );
            insert into public.file (path, mime, content) values
              ('pixel.png', 'image/png', decode(
                'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
                'base64')),
              ('css/site.css', 'text/css; charset=utf-8', convert_to('p::after { content: "é" }', 'UTF8')),
              ('logo ü.svg', 'image/svg+xml', convert_to('<svg xmlns="http://www.w3.org/2000/svg"/>', 'UTF8')),
              ('module.wasm', 'application/wasm', '\x0061736d01000000'),
              ('empty.txt', 'text/plain', ''),
              ('unknown', null, '\xff00fe'),
              ('large.bin', 'application/octet-stream', (
                select string_agg(sha256(int4send(n)), '' order by n) from generate_series(1, 32768) n));
           "#,
    syncs: &[Sync {
        name: "files",
        toml: "table = \"public.file\"\nkey = \"assets/file/{path}\"\nvalue = \"content\"\n\
               content_type = \"mime\"\nwatch = [\"content\", \"mime\"]",
        namespace: NAMESPACE,
        oracle: "",
    }],
    settings: &[],
    limits: None,
};

/// A file as it stands in the table, and what the Worker answers to its path.
struct File {
    path: String,
    mime: Option<String>,
    content: Vec<u8>,
    reply: Reply,
}

async fn files(way: &Way) -> Vec<File> {
    let mut files = Vec::new();
    for row in way
        .world
        .rows("select path, mime, content from public.file order by path")
        .await
    {
        let path: String = row.get(0);
        let reply = way.edge.get(&url_path(&path)).await;
        files.push(File {
            path,
            mime: row.get(1),
            content: row.get(2),
            reply,
        });
    }
    files
}

fn url_path(path: &str) -> String {
    format!("/assets/file/{}", path.replace(' ', "%20"))
}

/// The status of a file's path for a browser that has it already.
async fn again(way: &Way, file: &File) -> u16 {
    let condition = [("if-none-match", file.reply.header("etag"))];
    let path = url_path(&file.path);
    way.edge
        .request(Method::GET, &path, &condition)
        .await
        .status
}

#[tokio::test]
async fn files_come_out_byte_for_byte_with_their_types() {
    let way = Way::start(PLAN).await;
    way.quiet().await;
    let before = files(&way).await;
    assert_eq!(before.len(), 7);
    for file in &before {
        assert_eq!(file.reply.status, 200, "{}", file.path);
        assert!(file.reply.body == file.content, "{}", file.path);
        let mime = file.mime.as_deref().unwrap_or("application/octet-stream");
        assert_eq!(file.reply.header("content-type"), mime, "{}", file.path);
        assert_eq!(again(&way, file).await, 304, "{}", file.path);
    }

    let bytes: usize = before.iter().map(|file| file.content.len()).sum();
    wait::say(&format!(
        "files: {} files, {bytes} bytes, come out byte for byte with their MIME types",
        before.len()
    ));

    // Who has the old content, or the same content with the old type, gets the new one.
    way.world
        .sql(
            "update public.file set content = content || '\\x00' where path = 'large.bin';
             update public.file set mime = 'text/markdown' where path = 'empty.txt';
             update public.file set uploaded = now();
             delete from public.file where path = 'unknown'",
        )
        .await;
    way.quiet().await;
    for file in &before {
        let expected = match file.path.as_str() {
            "large.bin" | "empty.txt" => 200,
            "unknown" => 404,
            _ => 304,
        };
        assert_eq!(again(&way, file).await, expected, "{}", file.path);
    }
    for file in files(&way).await {
        assert!(file.reply.body == file.content, "{}", file.path);
        assert_eq!(
            file.reply.header("content-type"),
            file.mime.unwrap(),
            "{}",
            file.path
        );
    }
    way.stop().await;
}
