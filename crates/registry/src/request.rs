//! What a request carries into the registry: who asks, when, and the options of each verb.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::Status;
use async_trait::async_trait;
use machinery::{Object, Value};
use stdx::Timestamp;

use crate::ResourceInfo;

/// One request: its user and the moment that it counts from.
#[derive(Debug)]
pub struct RequestContext {
    pub user: Arc<UserInfo>,
    /// The time that goes into `creationTimestamp`, `deletionTimestamp` and `managedFields`.
    pub time: Timestamp,
    /// Everything but the write happens.
    pub dry_run: bool,
    /// The `fieldManager` option, or the start of the user agent when the option is absent.
    pub field_manager: String,
    pub user_agent: String,
    warnings: Mutex<Vec<String>>,
}

impl RequestContext {
    pub fn new(user: Arc<UserInfo>, time: Timestamp) -> Self {
        Self {
            user,
            time,
            dry_run: false,
            field_manager: String::new(),
            user_agent: String::new(),
            warnings: Mutex::default(),
        }
    }

    /// A request of the server itself, allowed everything.
    pub fn internal(time: Timestamp) -> Self {
        let user = UserInfo {
            name: "system:apiserver".into(),
            groups: vec!["system:authenticated".into(), "system:masters".into()],
            ..UserInfo::default()
        };
        let mut context = Self::new(Arc::new(user), time);
        context.field_manager = "kube-apiserver".into();
        context
    }

    /// Adds a `Warning` header; a text that was added before is not repeated.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Empty: the newest; `0`: any that is at hand; else at least this.
    pub resource_version: String,
}

/// Options of list, watch and deletecollection, as texts of the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    /// Empty, `Exact` or `NotOlderThan`.
    pub resource_version_match: String,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    /// How long a watch lasts; `None`: until its receiver drops it.
    pub timeout: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// The caller has set `metadata.managedFields` (or wants none).
    pub keep_managed_fields: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdateOptions {
    /// Server-side apply: an object that does not exist is created, and the update function has
    /// set `metadata.managedFields` itself.
    pub apply: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl Propagation {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Orphan" => Some(Self::Orphan),
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            _ => None,
        }
    }
}

/// `metav1.DeleteOptions`, checked by the handler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub precondition_uid: Option<String>,
    pub precondition_resource_version: Option<String>,
    pub propagation_policy: Option<Propagation>,
    pub orphan_dependents: Option<bool>,
}

/// What a delete answers with.
#[derive(Clone, Debug, PartialEq)]
pub enum Deleted {
    /// The object is there still (grace period or finalizers), or its kind answers with the
    /// last state of what was deleted.
    Object { object: Object, gone: bool },
    /// `Status: Success` with these details.
    Status { name: String, uid: String },
}

impl Deleted {
    /// Whether the object is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Object { gone, .. } => *gone,
            Self::Status { .. } => true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As in `AdmissionReview`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What admission looks at. Objects are in the version of the request.
#[derive(Debug)]
pub struct Attributes<'a> {
    pub operation: Operation,
    pub resource: &'a ResourceInfo,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty for a create with `generateName`, and for deletecollection.
    pub name: &'a str,
    /// `None` for deletes.
    pub object: Option<Object>,
    /// `None` for creates.
    pub old_object: Option<Object>,
    pub context: &'a RequestContext,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`, as sent.
    pub options: Value,
}

/// The admission chain, as the registry calls it.
#[async_trait]
pub trait Admission: Send + Sync {
    /// May change `attributes.object`.
    async fn mutate(&self, attributes: &mut Attributes<'_>) -> Result<(), Status>;
    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status>;
}

/// Admits everything: for tests and for writes of the server itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdmitAll;

#[async_trait]
impl Admission for AdmitAll {
    async fn mutate(&self, _: &mut Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }
    async fn validate(&self, _: &Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// Makes the new object from the current one. Called again after a lost race, so it must not
/// keep state. `None`: there is no such object (asked only where an update may create).
pub trait UpdateFn: Send + Sync {
    fn update(&self, current: Option<&Object>) -> Result<Object, Status>;
}

impl<F> UpdateFn for F
where
    F: Fn(Option<&Object>) -> Result<Object, Status> + Send + Sync,
{
    fn update(&self, current: Option<&Object>) -> Result<Object, Status> {
        self(current)
    }
}
