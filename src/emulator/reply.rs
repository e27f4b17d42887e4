//! Replies as the API words them: the envelope, the error codes, the rate limit headers.
//!
//! Owns their JSON. Knows nothing of how an operation came to its result.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::limits::Allowance;

/// What the real API leaves to be guessed.
const NO_ACCOUNT: &str = " The path names no account: it begins with /accounts/ACCOUNT_ID, for which the \
                          emulator takes any 32 hexadecimal digits unless it was started with --account.";

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A whole reply, not yet sent.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Reply {
    /// Any body of any type.
    pub(super) fn new(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Self {
        Self {
            status,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, content_type)]),
            body,
        }
    }

    /// A value as JSON.
    pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        // Our own types serialise; an empty body would show at once in a test if one did not.
        Self::new(
            status,
            JSON,
            serde_json::to_vec(body).unwrap_or_default().into(),
        )
    }

    /// Success with a result.
    pub(super) fn success(result: &impl Serialize) -> Self {
        Self::json(StatusCode::OK, &Envelope::success(result, None, &[]))
    }

    /// Success with a result and where it stands among its pages.
    pub(super) fn page(result: &impl Serialize, result_info: Value) -> Self {
        Self::json(
            StatusCode::OK,
            &Envelope::success(result, Some(result_info), &[]),
        )
    }

    /// Success with a result and a message.
    pub(super) fn success_with_message(result: &impl Serialize, code: u32, message: &str) -> Self {
        let message = json!({ "code": code, "message": message });
        Self::json(StatusCode::OK, &Envelope::success(result, None, &[message]))
    }

    /// The headers that say what is left of the request limit.
    pub(super) fn set_allowance(&mut self, allowance: &Allowance) {
        let Allowance {
            limit,
            remaining,
            reset_seconds,
            ..
        } = allowance;
        let policy = format!("\"default\";q={};w={}", limit.quota, limit.window.as_secs());
        let left = format!("\"default\";r={remaining};t={reset_seconds}");
        self.set_header(HeaderName::from_static("ratelimit"), &left);
        self.set_header(HeaderName::from_static("ratelimit-policy"), &policy);
        if allowance.refused {
            self.set_header(RETRY_AFTER, &reset_seconds.to_string());
        }
    }

    /// Sets a header, unless the value has characters that no header may have.
    pub(super) fn set_header(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
    }
}

impl From<Reply> for Response {
    fn from(reply: Reply) -> Self {
        let mut response = Response::new(Body::from(reply.body));
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        response
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let mut one = json!({ "code": error.code, "message": error.message });
        if let Some((code, message)) = error.chain {
            one["error_chain"] = json!([{ "code": code, "message": message }]);
        }
        let mut reply = Self::json(error.status, &Envelope::failure(&[one], Value::Null));
        if let Some(seconds) = error.retry_after {
            reply.set_header(RETRY_AFTER, &seconds.to_string());
        }
        reply
    }
}

/// What every JSON reply of the API is wrapped in.
#[derive(Serialize)]
pub(super) struct Envelope<'a, T> {
    success: bool,
    errors: &'a [Value],
    messages: &'a [Value],
    result: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_info: Option<Value>,
}

impl<'a, T> Envelope<'a, T> {
    fn success(result: T, result_info: Option<Value>, messages: &'a [Value]) -> Self {
        Self {
            success: true,
            errors: &[],
            messages,
            result,
            result_info,
        }
    }

    /// Failure; the result is null except where a bulk operation says what it did all the same.
    pub(super) fn failure(errors: &'a [Value], result: T) -> Self {
        Self {
            success: false,
            errors,
            messages: &[],
            result,
            result_info: None,
        }
    }
}

/// Result of a bulk write or a bulk delete.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct BulkResult {
    pub(super) successful_key_count: usize,
    pub(super) unsuccessful_keys: Vec<std::sync::Arc<str>>,
}

/// A refusal with its HTTP status and the API's own code.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: u32,
    message: String,
    chain: Option<(u32, &'static str)>,
    retry_after: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: u32, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            chain: None,
            retry_after: None,
        }
    }

    fn bad(code: u32, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn no_route(path: &str) -> Self {
        let mut message =
            format!("Could not route to {path}, perhaps your object identifier is invalid?");
        if path.contains("/storage/kv") && !path.contains("/accounts/") {
            message.push_str(NO_ACCOUNT);
        }
        Self::new(StatusCode::NOT_FOUND, 7003, message)
    }

    pub(super) fn no_credentials() -> Self {
        Self::bad(
            9106,
            "Missing X-Auth-Key, X-Auth-Email or Authorization headers",
        )
    }

    pub(super) fn malformed_authorization() -> Self {
        let chain = Some((6111, "Invalid format for Authorization header"));
        Self {
            chain,
            ..Self::bad(6003, "Invalid request headers")
        }
    }

    pub(super) fn wrong_credentials() -> Self {
        Self::new(StatusCode::FORBIDDEN, 10000, "Authentication error")
    }

    pub(super) fn invalid_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, 1000, "Invalid API Token")
    }

    pub(super) fn too_many_requests() -> Self {
        let message = "Please wait and consider throttling your request speed";
        Self::new(StatusCode::TOO_MANY_REQUESTS, 971, message)
    }

    /// A second write of a key within its interval.
    pub(super) fn key_too_soon(retry_after_seconds: u64) -> Self {
        let retry_after = Some(retry_after_seconds);
        let message = "too many requests: this key was written less than a second ago";
        Self {
            retry_after,
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, 10022, message)
        }
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!("request body exceeds the limit of {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, 10024, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, 10001, message)
    }

    pub(super) fn key_not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            10009,
            format!("{what}: 'key not found'"),
        )
    }

    pub(super) fn malformed_namespace(what: &str) -> Self {
        let message = format!("{what}: 'could not parse UUID from request's namespace_id'");
        Self::bad(10011, message)
    }

    pub(super) fn malformed_value(message: impl Into<String>) -> Self {
        Self::bad(10012, message)
    }

    pub(super) fn namespace_not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            10013,
            format!("{what}: 'namespace not found'"),
        )
    }

    pub(super) fn namespace_exists() -> Self {
        let message = "a namespace with this account ID and title already exists";
        Self::bad(10014, message)
    }

    pub(super) fn too_many_namespaces(limit: usize) -> Self {
        Self::bad(
            10018,
            format!("the account has {limit} namespaces, and may have no more"),
        )
    }

    pub(super) fn missing_title() -> Self {
        Self::bad(10019, "the title of the namespace is missing or empty")
    }

    pub(super) fn value_too_large(status: StatusCode, bytes: usize, limit: usize) -> Self {
        let message = format!("Value length of {bytes} exceeds limit of {limit}.");
        Self::new(status, 10024, message)
    }

    pub(super) fn invalid_limit(lowest: usize, highest: usize) -> Self {
        Self::bad(
            10028,
            format!("limit must be a number from {lowest} to {highest}"),
        )
    }

    pub(super) fn invalid_request(message: impl Into<String>) -> Self {
        Self::bad(10029, message)
    }

    pub(super) fn key_too_long(status: StatusCode, bytes: usize, limit: usize) -> Self {
        let message =
            format!("UTF-8 encoded length of {bytes} exceeds key length limit of {limit}.");
        Self::new(status, 10030, message)
    }

    pub(super) fn invalid_expiration(text: &str, least_seconds: u64) -> Self {
        let message = format!(
            "Invalid expiration of {text}. Expiration times must be at least {least_seconds} seconds in the future."
        );
        Self::bad(10033, message)
    }

    pub(super) fn invalid_expiration_ttl(text: &str, least_seconds: u64) -> Self {
        let message = format!(
            "Invalid expiration_ttl of {text}. Expiration TTL must be at least {least_seconds}."
        );
        Self::bad(10034, message)
    }

    pub(super) fn invalid_cursor() -> Self {
        Self::bad(10041, "the cursor is not one that a list request returned")
    }

    pub(super) fn empty_key() -> Self {
        Self::bad(10042, "Key names must not be empty")
    }

    pub(super) fn illegal_key(key: &str) -> Self {
        let message = format!("Illegal key name \"{key}\". Please use a different name.");
        Self::bad(10042, message)
    }

    pub(super) fn metadata_too_large(bytes: usize, limit: usize) -> Self {
        let message = format!("Metadata length of {bytes} exceeds limit of {limit}.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, 10047, message)
    }

    pub(super) fn malformed_metadata() -> Self {
        Self::bad(10047, "metadata must be valid JSON")
    }
}
