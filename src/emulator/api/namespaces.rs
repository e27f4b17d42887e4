//! Namespaces, and the little that clients ask about the user and the account.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{check_namespace, query};
use crate::emulator::data::ApplyError;
use crate::emulator::desk::{Call, Desk};
use crate::emulator::reply::{ApiError, Reply};

/// Account that is listed where the emulator takes any.
const ANY_ACCOUNT: &str = "00000000000000000000000000000000";

#[derive(Deserialize)]
struct Title {
    #[serde(default)]
    title: String,
}

pub(super) fn verify_token() -> Reply {
    let token = json!({ "id": ANY_ACCOUNT, "status": "active" });
    Reply::success_with_message(&token, 10000, "This API Token is valid and active")
}

pub(super) fn list_accounts(desk: &Desk) -> Reply {
    one_page(&account(desk))
}

pub(super) fn list_memberships(desk: &Desk) -> Reply {
    one_page(&json!({ "id": ANY_ACCOUNT, "status": "accepted", "account": account(desk) }))
}

fn account(desk: &Desk) -> Value {
    let id = desk.account.as_deref().unwrap_or(ANY_ACCOUNT);
    json!({ "id": id, "name": "Emulated account", "type": "standard" })
}

fn one_page(entry: &Value) -> Reply {
    let info = json!({ "page": 1, "per_page": 20, "count": 1, "total_count": 1, "total_pages": 1 });
    Reply::page(&[entry], info)
}

pub(super) fn list(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let parameters = query(call)?;
    let number = |name: &str, default: usize, code: u32| match parameters.get(name) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| {
                let message = format!("{name} must be a number from 1");
                ApiError::new(StatusCode::BAD_REQUEST, code, message)
            }),
    };
    let page = number("page", 1, 10007)?;
    let per_page = number("per_page", 20, 10008)?.min(1_000);

    let data = desk.data();
    let mut all: Vec<(String, String)> = data
        .namespaces()
        .map(|(id, namespace)| (id.to_string(), namespace.title.clone()))
        .collect();
    drop(data);
    match parameters.get("order").map(String::as_str) {
        None | Some("id") => {}
        Some("title") => all.sort_by(|a, b| a.1.cmp(&b.1)),
        Some(_) => {
            let message = "order must be id or title";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, 10043, message));
        }
    }
    match parameters.get("direction").map(String::as_str) {
        None | Some("asc") => {}
        Some("desc") => all.reverse(),
        Some(_) => {
            let message = "direction must be asc or desc";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, 10044, message));
        }
    }
    let total = all.len();
    let shown: Vec<Value> = all
        .iter()
        .skip(page.saturating_sub(1).saturating_mul(per_page))
        .take(per_page)
        .map(|(id, title)| namespace(id, title))
        .collect();
    let info = json!({
        "page": page,
        "per_page": per_page,
        "count": shown.len(),
        "total_count": total,
        "total_pages": total.div_ceil(per_page),
    });
    Ok(Reply::page(&shown, info))
}

pub(super) fn create(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let title = title(call)?;
    let mut data = desk.data();
    if data
        .namespaces()
        .any(|(_, namespace)| namespace.title == title)
    {
        return Err(ApiError::namespace_exists());
    }
    if data.namespaces().len() >= desk.limits.namespaces {
        return Err(ApiError::too_many_namespaces(desk.limits.namespaces));
    }
    let id = format!("{:032x}", fastrand::u128(..));
    data.create(&id, &title)
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Reply::success(&namespace(&id, &title)))
}

pub(super) fn get(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "get namespace";
    check_namespace(desk, call, what)?;
    let id = &call.route.namespace;
    let mut data = desk.data();
    let found = data
        .namespace(id)
        .ok_or_else(|| ApiError::namespace_not_found(what))?;
    Ok(Reply::success(&namespace(id, &found.title)))
}

pub(super) fn rename(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "rename namespace";
    check_namespace(desk, call, what)?;
    let title = title(call)?;
    let id = call.route.namespace.as_str();
    let mut data = desk.data();
    if data
        .namespaces()
        .any(|(other, held)| **other != *id && held.title == title)
    {
        return Err(ApiError::namespace_exists());
    }
    data.rename(id, &title)
        .map_err(|error| apply_error(&error, what))?;
    Ok(Reply::success(&namespace(id, &title)))
}

pub(super) fn delete(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "remove namespace";
    check_namespace(desk, call, what)?;
    desk.data()
        .remove(&call.route.namespace)
        .map_err(|error| apply_error(&error, what))?;
    Ok(Reply::success(&json!({})))
}

fn title(call: &Call) -> Result<String, ApiError> {
    let Title { title } = serde_json::from_slice(&call.body)
        .map_err(|error| ApiError::invalid_request(format!("the body is malformed: {error}")))?;
    if title.is_empty() {
        Err(ApiError::missing_title())
    } else {
        Ok(title)
    }
}

fn namespace(id: &str, title: &str) -> Value {
    json!({ "id": id, "title": title, "supports_url_encoding": true })
}

fn apply_error(error: &ApplyError, what: &str) -> ApiError {
    match error {
        ApplyError::NoNamespace => ApiError::namespace_not_found(what),
        ApplyError::Journal(_) => ApiError::internal(error.to_string()),
    }
}
