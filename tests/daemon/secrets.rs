//! Nothing that is secret or personal shows in logs, metrics or status, whatever goes wrong.

use std::time::Duration;

use pg2kv::emulator::faults::{Fault, Reply, StatusReply};
use reqwest::Method;

use super::{DOCS, world};
use crate::support::world::TOKEN;

/// Stands in the key of every row here.
const KEY: &str = "canary-key-83ab";
/// Stands in the value of every row here.
const VALUE: &str = "canary-value-f00d";
/// What the API says of a request may quote it.
const ECHO: &str = "canary-echo-77aa";

#[tokio::test]
async fn canaries_never_show() {
    let world = world().await;
    let mut settings = world.settings();
    let all = "trace,tokio_postgres::query=trace,tokio_postgres::connection=trace,hyper_util=trace,\
               h2=trace,reqwest=trace,rustls=trace,log=trace";
    settings.insert("log.level".to_owned(), all.to_owned());
    let daemon = world.daemon_with("trace", &settings);
    daemon.leads().await;
    let echo = StatusReply {
        status: 400,
        body: Some(format!(
            r#"{{"success": false, "errors": [{{"code": 10043, "message": "{ECHO} {KEY} {VALUE}"}}]}}"#
        )),
        ..StatusReply::default()
    };
    let faults = [
        Fault::new(Reply::Status(echo)).on_key_prefix(&format!("refused-{KEY}")),
        Fault::status(503).times(1),
        Fault::new(Reply::Garbage).times(1),
        Fault::new(Reply::Reset).times(1),
        Fault::partial(0.5).times(1),
        Fault::delay(Duration::from_millis(50)).times(1),
    ];
    for fault in faults {
        world.kv.faults().add(fault).unwrap();
    }
    world
        .sql(&format!(
            "insert into public.doc select n || '{KEY}', '{VALUE}' from generate_series(1, 30) n;
             insert into public.doc values
               ('refused-{KEY}', '{VALUE}'),
               ('{KEY}' || repeat('k', 513), '{VALUE}'),
               ('big-{KEY}', '{VALUE}' || repeat('x', 26214400))"
        ))
        .await;
    world.quiet().await;
    assert_eq!(
        world.number("select count(*) from pg2kv.dead_letter").await,
        3
    );

    world.kv.set_token(Some(format!("other-{TOKEN}")));
    world.sql("update public.doc set body = body || '.'").await;
    daemon.logged("nothing is sent to KV for a while").await;
    let mut seen = String::new();
    for path in ["/readyz", "/metrics", "/api/status", "/"] {
        seen.push_str(&daemon.get(path).await.1);
    }
    world.set_token(&format!("other-{TOKEN}"));
    world.quiet().await;
    world.kv.set_token(Some(TOKEN.to_owned()));
    world.set_token(TOKEN);
    world.api(Method::DELETE, DOCS, "").await;
    world
        .sql("update public.doc set body = body || '.' where name like '1%'")
        .await;
    daemon.logged("sync on hold").await;
    world
        .sql("alter table public.doc rename body to other")
        .await;
    world.kv.create_namespace(DOCS).unwrap();
    world.sql("insert into public.note values (1, 'a')").await;
    world.has("note:1", Some(r#"{"text":"a"}"#)).await;
    for path in ["/readyz", "/metrics", "/api/status", "/"] {
        seen.push_str(&daemon.get(path).await.1);
    }
    seen.push_str(&daemon.log());
    for canary in [TOKEN, KEY, VALUE, ECHO] {
        let line = seen.lines().find(|line| line.contains(canary));
        assert!(line.is_none(), "{canary}: {}", line.unwrap_or_default());
    }
    daemon.stop().await;
}
