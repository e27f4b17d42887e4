use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::change::owner::InstallationId;
use crate::change::{DraftText, KV_METADATA_MAX_BYTES};

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn template(text: &str, columns: &[&str]) -> Template {
    Template::parse(text, &strings(columns)).unwrap()
}

fn refused(text: &str, columns: &[&str]) -> TemplateError {
    Template::parse(text, &strings(columns)).unwrap_err()
}

fn name(text: &str) -> KvName {
    KvName::new(text).unwrap()
}

#[test]
fn a_template_prints_what_it_was_parsed_from() {
    let columns = ["a".to_owned(), "b".to_owned()];
    for text in ["x:{a}:{b}", "{b}/{a}", "{{x}}{a}}}-{{{b}", "{a}:{b}:{a}"] {
        let template = Template::parse(text, &columns).unwrap();
        assert_eq!(template.to_string(), text);
        assert_eq!(template.columns(), columns);
    }
}

#[test]
fn names_are_made_of_columns() {
    for (text, columns, values, expected) in [
        ("user:{id}", vec!["id"], vec!["42"], "user:42"),
        ("{id}", vec!["id"], vec!["a/b %20"], "a/b %20"),
        ("{b}/{a}.json", vec!["a", "b"], vec!["1", "2"], "2/1.json"),
        ("{{{id}}}", vec!["id"], vec!["7"], "{7}"),
        ("{id}-{id}", vec!["id"], vec!["7"], "7-7"),
        ("all users", vec![], vec![], "all users"),
        (
            "caf\u{e9}:{\u{e9}t\u{e9}}",
            vec!["\u{e9}t\u{e9}"],
            vec!["\u{1f600}"],
            "caf\u{e9}:\u{1f600}",
        ),
    ] {
        let rendered = template(text, &columns).render(&strings(&values)).unwrap();
        assert_eq!(rendered.as_str(), expected, "{text}");
    }
}

#[test]
fn template_errors_name_the_position() {
    use TemplateError::*;
    assert_eq!(refused("\u{e9}:{id", &["id"]), Unclosed { at: 3 });
    assert_eq!(refused("{i{d}", &["id"]), Unclosed { at: 1 });
    assert_eq!(refused("user}:{id}", &["id"]), Stray { at: 5 });
    assert_eq!(refused("{a}{b}", &["a", "b"]), Adjacent { at: 4 });
    assert_eq!(refused("{a}:x", &["a", "b"]), Unused { column: "b".into() });
    assert!(matches!(
        refused("user:{i}", &["id"]),
        UnknownColumn { at: 6, .. }
    ));
    assert!(matches!(
        refused("user:{}", &["id"]),
        UnknownColumn { at: 6, .. }
    ));
    assert!(matches!(refused("", &[]), Impossible(_)));
    assert!(matches!(refused("..", &[]), Impossible(_)));
    assert!(matches!(
        refused(&format!("{}{{a}}", "x".repeat(513)), &["a"]),
        Impossible(_)
    ));
    let text = refused("user:{name}", &["id", "region"]).to_string();
    assert_eq!(
        text,
        "`{name}` at character 6 is not a key column; the key columns are: id, region"
    );
}

#[test]
fn the_prefix_is_the_text_before_the_first_placeholder() {
    assert_eq!(template("user:{id}", &["id"]).prefix(), "user:");
    assert_eq!(template("{{x}}{id}", &["id"]).prefix(), "{x}");
    assert_eq!(template("{id}:", &["id"]).prefix(), "");
    assert_eq!(template("all", &[]).prefix(), "all");
}

#[test]
fn a_value_that_runs_into_the_separator_is_poison() {
    let reason = |text, values: &[&str]| {
        let poison = template(text, &["a", "b"])
            .render(&strings(values))
            .unwrap_err();
        assert!(
            !poison.detail.contains("secret"),
            "no value in {}",
            poison.detail
        );
        poison.reason
    };
    assert_eq!(
        reason("{a}:{b}", &["secret:", "x"]),
        PoisonReason::IllegalKey
    );
    // "secret:" does not contain "::", yet "secret:::x" reads back as "secret" and ":x".
    assert_eq!(
        reason("{a}::{b}", &["secret:", "x"]),
        PoisonReason::IllegalKey
    );
    // The last value may hold anything, and so may a value without a separator after it.
    assert!(
        template("{a}:{b}", &["a", "b"])
            .render(&strings(&["x", "y:z"]))
            .is_ok()
    );
    assert!(
        template("u:{a}.json", &["a"])
            .render(&strings(&["x.json"]))
            .is_ok()
    );
}

#[test]
fn names_over_the_limits_of_workers_kv_are_poison() {
    let single = template("{a}", &["a"]);
    let reason = |value: &str| single.render(&strings(&[value])).unwrap_err().reason;
    assert_eq!(reason(""), PoisonReason::IllegalKey);
    assert_eq!(reason(".."), PoisonReason::IllegalKey);
    assert_eq!(reason(&"\u{e9}".repeat(257)), PoisonReason::KeyTooLong);
    assert!(single.render(&strings(&[&"\u{e9}".repeat(256)])).is_ok());
}

#[test]
fn names_of_others_do_not_reverse() {
    let both = template("user:{a}:{b}.json", &["a", "b"]);
    assert_eq!(
        both.reverse(&name("user:1:2:3.json")),
        Some(strings(&["1", "2:3"]))
    );
    assert_eq!(both.reverse(&name("user:1.json")), None);
    assert_eq!(both.reverse(&name("user:1:2")), None);
    assert_eq!(both.reverse(&name("session:1:2.json")), None);
    let twice = template("{a}-{a}", &["a"]);
    assert_eq!(twice.reverse(&name("7-7")), Some(strings(&["7"])));
    assert_eq!(twice.reverse(&name("7-8")), None);
    let fixed = template("all", &[]);
    assert_eq!(fixed.reverse(&name("all")), Some(vec![]));
    assert_eq!(fixed.reverse(&name("all users")), None);
}

fn words(text: &'static str) -> Value {
    Value::Text(Bytes::from_static(text.as_bytes()))
}

fn owner() -> Owner {
    Owner::new(InstallationId::parse("0123456789ab").unwrap(), "user")
}

/// The mark of a document.
fn mark(document: &Document) -> Mark {
    Mark::new(document.hash, owner())
}

fn rendered(draft: Draft) -> Rendered {
    render(
        &template("user:{id}", &["id"]),
        owner(),
        &strings(&["1"]),
        Some(draft),
    )
}

fn put(draft: Draft) -> Document {
    match rendered(draft) {
        Rendered::Put(document) => document,
        other => panic!("{other:?}"),
    }
}

fn poison(draft: Draft) -> Poison {
    match rendered(draft) {
        Rendered::Poison(poison) => poison,
        other => panic!("{other:?}"),
    }
}

fn with_metadata(content_type: Option<&str>, metadata: Option<&str>) -> Draft {
    Draft {
        content_type: content_type.map(|text| DraftText::Whole(text.to_owned())),
        metadata: metadata.map(|text| DraftText::Whole(text.to_owned())),
        ..Draft::of(words("v"))
    }
}

#[test]
fn a_value_makes_a_pair_and_none_a_delete() {
    let user = template("user:{id}", &["id"]);
    let key = strings(&["1"]);
    let gone = render(&user, owner(), &key, None);
    assert_eq!(gone, Rendered::Delete(name("user:1")));
    let document = put(Draft::of(words("{\"a\":1}")));
    assert_eq!(document.name, name("user:1"));
    assert_eq!(
        &*document.metadata,
        format!("{{\"pg2kv\":\"{}\"}}", mark(&document))
    );
    // Another value here means that an upgrade writes every pair of every user again.
    assert_eq!(
        document.hash.to_string(),
        "a0150ce4a9c16abd18dea6ba06869997"
    );
}

#[test]
fn a_value_over_the_limits_is_poison() {
    let with = |value: Vec<u8>| Draft::of(Value::Text(Bytes::from(value)));
    let reason = |value| poison(with(value)).reason;
    put(with(vec![b'x'; KV_VALUE_MAX_BYTES]));
    assert!(
        put(with(Vec::new())).value.bytes().is_empty(),
        "an empty value is a value"
    );
    assert_eq!(
        reason(vec![b'x'; KV_VALUE_MAX_BYTES + 1]),
        PoisonReason::ValueTooLarge
    );
    assert_eq!(reason(vec![b'x', 0xff]), PoisonReason::RowError);
    let detail = |value| {
        let draft = Draft {
            value,
            ..Draft::of(words(""))
        };
        poison(draft).detail
    };
    let too_large = |bytes, shards| detail(DraftValue::TooLarge { bytes, shards });
    let sentence = "the value has 30000000 bytes; Workers KV allows 26214400";
    assert_eq!(too_large(30_000_000, None), sentence);
    assert_eq!(
        too_large(30_000_000, Some(1)),
        format!(
            "{sentence}; divide its rows among several documents: shards = 3, and {{shard}} in the key"
        )
    );
    assert!(too_large(30_000_000, Some(8)).contains("shards = 19,"));
    assert!(detail(DraftValue::Twice).contains("the same member"));
    // Bytes need not be text.
    put(Draft::of(Value::Binary(Bytes::from_static(b"x\xff"))));
}

#[test]
fn metadata_holds_the_hash_the_type_and_the_users_own_members() {
    for (content_type, own, expected) in [
        (None, None, ""),
        (None, Some("null"), ""),
        (None, Some(" {} "), ""),
        (Some("image/png"), None, r#","content_type":"image/png""#),
        (Some("a\"b"), Some("{}"), r#","content_type":"a\"b""#),
        (
            Some("text/html; charset=utf-8"),
            Some(r#"{"v": 1}"#),
            r#","content_type":"text/html; charset=utf-8","v":1"#,
        ),
        // Every digit stays, and so does the space within a string.
        (
            None,
            Some("{\n\t\"n\" : [ 9007199254740993.10 , \"a \\\" b\" ] }"),
            r#","n":[9007199254740993.10,"a \" b"]"#,
        ),
        (
            None,
            Some(r#"{"content_type":"x"}"#),
            r#","content_type":"x""#,
        ),
    ] {
        let document = put(with_metadata(content_type, own));
        let expected = format!("{{\"pg2kv\":\"{}\"{expected}}}", mark(&document));
        assert_eq!(&*document.metadata, expected, "{content_type:?} {own:?}");
    }
}

#[test]
fn metadata_that_kv_or_pg2kv_cannot_take_is_poison() {
    // The mark takes 66 bytes with its name, a comma follows, and so do 6 of `"k":""` here.
    let fits = |bytes: usize| format!(r#"{{"k":"{}"}}"#, "x".repeat(bytes));
    assert_eq!(
        put(with_metadata(None, Some(&fits(951)))).metadata.len(),
        KV_METADATA_MAX_BYTES
    );
    for (content_type, own, sentence) in [
        (
            None,
            fits(952).as_str(),
            "1025 bytes with the mark of pg2kv",
        ),
        (None, "[1]", "not a JSON object"),
        (None, "7", "not a JSON object"),
        (None, "{", "not a JSON object"),
        (None, "{} {}", "not a JSON object"),
        (None, "", "not a JSON object"),
        (None, r#"{"a":1,"pg2kv":2}"#, "where pg2kv keeps its mark"),
        (None, r#"{"pg2k\u0076":2}"#, "where pg2kv keeps its mark"),
        (Some("a/b"), r#"{"content_type":2}"#, "keep one of them"),
        (Some(""), "{}", "content_type is empty"),
        (Some("a/b\r\nx: y"), "{}", "content_type is empty"),
        (Some("caf\u{e9}"), "{}", "content_type is empty"),
    ] {
        let poison = poison(with_metadata(content_type, Some(own)));
        assert_eq!(poison.reason, PoisonReason::BadMetadata, "{own}");
        assert!(poison.detail.contains(sentence), "{own}: {}", poison.detail);
        assert_eq!(poison.name, Some(name("user:1")));
    }
}

#[test]
fn an_end_that_is_near_is_sent_as_time_left() {
    let at = |ahead_seconds| Expiry::At {
        unix_seconds: 1_800_000_000,
        ahead_seconds,
    };
    for (expiry, expiration) in [
        (Expiry::Never, None),
        (Expiry::After(3_600), Some(Expiration::After(3_600))),
        (at(0), Some(Expiration::After(60))),
        (at(59), Some(Expiration::After(60))),
        (at(61), Some(Expiration::After(61))),
        (at(179), Some(Expiration::After(179))),
        (at(180), Some(Expiration::At(1_800_000_000))),
        (at(u64::MAX), Some(Expiration::At(1_800_000_000))),
    ] {
        let draft = Draft {
            expiry,
            ..Draft::of(words("v"))
        };
        assert_eq!(put(draft).expiration, expiration, "{expiry:?}");
    }
}

#[test]
fn the_hash_tells_contents_apart() {
    let binary = Value::Binary(Bytes::from_static(b"a"));
    let at = |unix_seconds, ahead_seconds| Expiry::At {
        unix_seconds,
        ahead_seconds,
    };
    let hashes = [
        content_hash(&words("a"), Expiry::Never, ""),
        content_hash(&words("b"), Expiry::Never, ""),
        content_hash(&binary, Expiry::Never, ""),
        content_hash(&words("a"), at(60, 9), ""),
        content_hash(&words("a"), at(61, 9), ""),
        content_hash(&words("a"), Expiry::After(60), ""),
        content_hash(&words("a"), Expiry::Never, "\"a\":1"),
        content_hash(&words(""), Expiry::Never, "a"),
    ];
    for (index, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..index].contains(hash), "{index}");
    }
    assert_eq!(content_hash(&words("a"), Expiry::Never, ""), hashes[0]);
    // What is left of it changes from read to read.
    assert_eq!(content_hash(&words("a"), at(60, 200), ""), hashes[3]);
}

/// Texts that often hold each other: a small alphabet makes the hard cases likely.
fn text(length: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let letter = prop_oneof![Just(':'), Just('a'), Just('{'), Just('}'), any::<char>()];
    proptest::collection::vec(letter, length).prop_map(String::from_iter)
}

/// A template over one to four columns, some used twice, with the columns' number.
fn templates() -> impl Strategy<Value = (Template, usize)> {
    (1_usize..=4)
        .prop_flat_map(|columns| {
            let extra = proptest::collection::vec(0..columns, 0..2);
            let uses = extra.prop_map(move |extra| (0..columns).chain(extra).collect::<Vec<_>>());
            (Just(columns), uses.prop_shuffle())
        })
        .prop_flat_map(|(columns, uses)| {
            let between = proptest::collection::vec(text(1..4), uses.len());
            (
                Just(columns),
                Just(uses),
                text(0..4),
                between,
                any::<bool>(),
            )
        })
        .prop_map(|(columns, uses, prefix, between, suffixed)| {
            let escape = |literal: &str| literal.replace('{', "{{").replace('}', "}}");
            let mut text = escape(&prefix);
            for (index, column) in uses.iter().enumerate() {
                text += &format!("{{c{column}}}");
                if suffixed || index + 1 < uses.len() {
                    text += &escape(&between[index]);
                }
            }
            let names: Vec<String> = (0..columns).map(|column| format!("c{column}")).collect();
            (Template::parse(&text, &names).unwrap(), columns)
        })
}

proptest! {
    #[test]
    fn reverse_undoes_render(
        (template, values) in templates().prop_flat_map(|(template, columns)| {
            (Just(template), proptest::collection::vec(text(0..6), columns))
        })
    ) {
        if let Ok(name) = template.render(&values) {
            prop_assert!(name.as_str().starts_with(template.prefix()));
            prop_assert_eq!(template.reverse(&name), Some(values));
        }
    }

    #[test]
    fn render_undoes_reverse((template, _) in templates(), text in text(1..12)) {
        let name = KvName::new(format!("{}{text}", template.prefix()));
        prop_assume!(name.is_ok(), "\".\" and \"..\" are no names");
        if let Ok(name) = name
            && let Some(values) = template.reverse(&name)
        {
            prop_assert_eq!(template.render(&values), Ok(name));
        }
    }

    #[test]
    fn parse_never_panics(text in ".{0,40}") {
        let _ = Template::parse(&text, &strings(&["a", "b"]));
    }
}

#[test]
fn a_row_that_is_gone_and_had_no_legal_name_needs_nothing() {
    let template = template("{name}", &["name"]);
    let of = |name: &str, value: Option<&'static str>| {
        let draft = value.map(|value| Draft::of(words(value)));
        render(&template, owner(), &strings(&[name]), draft)
    };
    assert_eq!(of("..", None), Rendered::Nothing);
    assert_eq!(of(&"k".repeat(513), None), Rendered::Nothing);
    assert!(matches!(of("..", Some("{}")), Rendered::Poison(_)));
    assert_eq!(of("a", None), Rendered::Delete(name("a")));
}
