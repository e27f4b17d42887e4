//! From method and path to the operation that is asked for.
//!
//! Owns the shape of the API's paths. Pure; knows nothing of what the operations do.

use std::borrow::Cow;

use axum::http::Method;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// Operations of the API, named as fault matchers and statistics name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `GET /user/tokens/verify`
    VerifyToken,
    /// `GET /accounts`
    ListAccounts,
    /// `GET /memberships`
    ListMemberships,
    /// `GET …/namespaces`
    ListNamespaces,
    /// `POST …/namespaces`
    CreateNamespace,
    /// `GET …/namespaces/{namespace}`
    GetNamespace,
    /// `PUT …/namespaces/{namespace}`
    RenameNamespace,
    /// `DELETE …/namespaces/{namespace}`
    DeleteNamespace,
    /// `GET …/keys`
    ListKeys,
    /// `GET …/values/{key}`
    ReadValue,
    /// `PUT …/values/{key}`
    WriteValue,
    /// `DELETE …/values/{key}`
    DeleteValue,
    /// `GET …/metadata/{key}`
    ReadMetadata,
    /// `PUT …/bulk`
    BulkWrite,
    /// `POST …/bulk/delete`, and the deprecated `DELETE …/bulk`
    BulkDelete,
    /// `POST …/bulk/get`
    BulkGet,
}

/// An operation with what its path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) operation: Operation,
    /// Account in the path; `None` for the paths of a user.
    pub(super) account: Option<String>,
    /// Namespace in the path, empty where the path has none.
    pub(super) namespace: String,
    /// Decoded key in the path, empty where the path has none.
    pub(super) key: String,
}

/// Where the API begins.
pub(super) const ROOT: &str = "/client/v4";

impl Route {
    /// The route of a request, or `None` where the API has none.
    pub(super) fn parse(method: &Method, path: &str) -> Option<Self> {
        let segments: Vec<&str> = path
            .strip_prefix(ROOT)?
            .strip_prefix('/')?
            .split('/')
            .collect();
        let user = |operation| Some(Self::new(operation, None));
        match (method.as_str(), segments.as_slice()) {
            ("GET", ["user", "tokens", "verify"]) => user(Operation::VerifyToken),
            ("GET", ["accounts"]) => user(Operation::ListAccounts),
            ("GET", ["memberships"]) => user(Operation::ListMemberships),
            (
                method,
                [
                    "accounts",
                    account,
                    "storage",
                    "kv",
                    "namespaces",
                    rest @ ..,
                ],
            ) if !account.is_empty() => Self::parse_namespaces(method, account, rest),
            _ => None,
        }
    }

    fn parse_namespaces(method: &str, account: &str, rest: &[&str]) -> Option<Self> {
        let (operation, namespace, key) = match (method, rest) {
            ("GET", []) => (Operation::ListNamespaces, "", ""),
            ("POST", []) => (Operation::CreateNamespace, "", ""),
            ("GET", [ns]) => (Operation::GetNamespace, *ns, ""),
            ("PUT", [ns]) => (Operation::RenameNamespace, *ns, ""),
            ("DELETE", [ns]) => (Operation::DeleteNamespace, *ns, ""),
            ("GET", [ns, "keys"]) => (Operation::ListKeys, *ns, ""),
            ("GET", [ns, "values", key]) => (Operation::ReadValue, *ns, *key),
            ("PUT", [ns, "values", key]) => (Operation::WriteValue, *ns, *key),
            ("DELETE", [ns, "values", key]) => (Operation::DeleteValue, *ns, *key),
            ("GET", [ns, "metadata", key]) => (Operation::ReadMetadata, *ns, *key),
            ("PUT", [ns, "bulk"]) => (Operation::BulkWrite, *ns, ""),
            ("DELETE", [ns, "bulk"]) | ("POST", [ns, "bulk", "delete"]) => {
                (Operation::BulkDelete, *ns, "")
            }
            ("POST", [ns, "bulk", "get"]) => (Operation::BulkGet, *ns, ""),
            _ => return None,
        };
        let key = percent_decode_str(key)
            .decode_utf8()
            .map(Cow::into_owned)
            .ok()?;
        let mut route = Self::new(operation, Some(account.to_owned()));
        namespace.clone_into(&mut route.namespace);
        route.key = key;
        Some(route)
    }

    fn new(operation: Operation, account: Option<String>) -> Self {
        Self {
            operation,
            account,
            namespace: String::new(),
            key: String::new(),
        }
    }
}
