//! `metav1.Status`: the error that an API client sees, typed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A failed request, exactly as it goes over the wire (`kind: Status, status: Failure`).
///
/// Made by the constructors below, which hold code, reason and message together as the API
/// machinery of Kubernetes does; handlers and clients pass it on unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    pub details: Option<Box<Details>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i32,
}

fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// One field's error. `reason` is a `metav1.CauseType` such as `FieldValueRequired`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

macro_rules! reasons {
    ($($name:ident)*) => {
        /// `metav1.StatusReason`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { Unknown, $($name),* }

        impl Reason {
            pub fn as_str(self) -> &'static str {
                match self { Self::Unknown => "", $(Self::$name => stringify!($name)),* }
            }

            pub fn parse(text: &str) -> Self {
                match text { $(stringify!($name) => Self::$name,)* _ => Self::Unknown }
            }
        }
    };
}

reasons! {
    Unauthorized Forbidden NotFound AlreadyExists Conflict Gone Invalid ServerTimeout
    StoreReadError Timeout TooManyRequests BadRequest MethodNotAllowed NotAcceptable
    RequestEntityTooLarge UnsupportedMediaType InternalError Expired ServiceUnavailable
}

impl Status {
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    fn on(self, group: &str, resource: &str, name: &str) -> Self {
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        };
        self.with_details(details)
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let what = group_resource(group, resource);
        Self::new(404, Reason::NotFound, format!("{what} {name:?} not found"))
            .on(group, resource, name)
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let what = group_resource(group, resource);
        Self::new(409, Reason::AlreadyExists, format!("{what} {name:?} already exists"))
            .on(group, resource, name)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = group_resource(group, resource);
        let message = format!("Operation cannot be fulfilled on {what} {name:?}: {why}");
        Self::new(409, Reason::Conflict, message).on(group, resource, name)
    }

    /// The usual conflict of an update with an old `resourceVersion`.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = group_resource(group, resource);
        let message = if what.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self::new(403, Reason::Forbidden, message).on(group, resource, name)
    }

    /// Field errors of one object. `kind` is the kind, not the resource, as in Kubernetes.
    /// Each cause's message is already in `field.Error` form without the field path.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let what = group_resource(group, kind);
        let texts: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let message = match texts.as_slice() {
            [] => format!("{what} {name:?} is invalid"),
            [one] => format!("{what} {name:?} is invalid: {one}"),
            many => format!("{what} {name:?} is invalid: [{}]", many.join(", ")),
        };
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes,
            ..Details::default()
        };
        Self::new(422, Reason::Invalid, message).with_details(details)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let what = group_resource(group, resource);
        let message = format!("{verb} is not supported on resources of kind {what:?}");
        Self::new(405, Reason::MethodNotAllowed, message).on(group, resource, "")
    }

    /// A resourceVersion that is too old (410): the client lists again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self::new(429, Reason::TooManyRequests, message).with_details(details)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        let text = message.to_string();
        let cause = Cause { message: text.clone(), ..Cause::default() };
        let details = Details { causes: vec![cause], ..Details::default() };
        Self::new(500, Reason::InternalError, format!("Internal error occurred: {text}"))
            .with_details(details)
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    pub fn is_forbidden(&self) -> bool {
        self.reason == Reason::Forbidden
    }

    /// A revision that is gone: `Expired` or `Gone`.
    pub fn is_expired(&self) -> bool {
        self.code == 410
    }

    pub fn retry_after_seconds(&self) -> Option<i32> {
        self.details.as_ref().map(|d| d.retry_after_seconds).filter(|&s| s > 0)
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&Wire::from(self)).unwrap_or_default()
    }

    /// Reads a `Status` body. `None` when it is none, or one of success.
    pub fn from_json(body: &[u8]) -> Option<Self> {
        let wire: Wire = serde_json::from_slice(body).ok()?;
        let failed = wire.kind == "Status" && wire.status != "Success";
        failed.then(|| Self {
            code: wire.code,
            reason: Reason::parse(&wire.reason),
            message: wire.message,
            details: wire.details.map(Box::new),
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

fn group_resource(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    kind: String,
    api_version: String,
    metadata: serde_json::Map<String, serde_json::Value>,
    status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    code: u16,
}

impl From<&Status> for Wire {
    fn from(status: &Status) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Default::default(),
            status: "Failure".into(),
            message: status.message.clone(),
            reason: status.reason.as_str().into(),
            details: status.details.as_deref().cloned(),
            code: status.code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote() {
        let cause = Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: "spec.containers".into(),
        };
        let status = Status::invalid("apps", "Deployment", "web", vec![cause]);
        assert_eq!(
            status.message,
            "Deployment.apps \"web\" is invalid: spec.containers: Required value"
        );
        assert_eq!(Status::from_json(&status.to_json()), Some(status));
        assert_eq!(Status::from_json(b"{\"kind\":\"Status\",\"status\":\"Success\"}"), None);
    }
}
