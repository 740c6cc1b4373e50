//! The table of kinds that are computed on request and never stored.

use std::sync::{Arc, LazyLock};

use api::{GroupVersionKind, Status, schema::schema};
use http::Response;
use machinery::{Object, value};
use registry::ResourceInfo;

use super::{no_such_method, options, pods, reviews, tokens};
use crate::{body::Body, pipeline::Call, request_info::RequestInfo, respond, wire};

/// Which handler computes a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtual {
    AccessReview,
    SelfAccessReview,
    LocalAccessReview,
    SelfRulesReview,
    SelfSubjectReview,
    TokenReview,
    Binding,
    ComponentStatus,
}

/// Group, plural, handler.
const TABLE: &[(&str, &str, Virtual)] = &[
    ("authorization.k8s.io", "subjectaccessreviews", Virtual::AccessReview),
    ("authorization.k8s.io", "selfsubjectaccessreviews", Virtual::SelfAccessReview),
    ("authorization.k8s.io", "localsubjectaccessreviews", Virtual::LocalAccessReview),
    ("authorization.k8s.io", "selfsubjectrulesreviews", Virtual::SelfRulesReview),
    ("authentication.k8s.io", "selfsubjectreviews", Virtual::SelfSubjectReview),
    ("authentication.k8s.io", "tokenreviews", Virtual::TokenReview),
    ("", "bindings", Virtual::Binding),
    ("", "componentstatuses", Virtual::ComponentStatus),
];

/// The handler of a request for a virtual kind.
pub fn find(info: &RequestInfo) -> Option<Virtual> {
    let line =
        TABLE.iter().find(|(group, plural, _)| *group == info.group && *plural == info.resource)?;
    (info.version == "v1" && info.subresource.is_empty()).then_some(line.2)
}

/// What discovery says of them.
pub fn infos() -> impl Iterator<Item = Arc<ResourceInfo>> {
    static INFOS: LazyLock<Vec<Arc<ResourceInfo>>> = LazyLock::new(|| {
        TABLE.iter().filter_map(|(group, plural, _)| info_of(group, plural).map(Arc::new)).collect()
    });
    INFOS.iter().cloned()
}

fn info_of(group: &str, plural: &str) -> Option<ResourceInfo> {
    let resource = schema().resource(group, "v1", plural)?;
    let texts = |list: &[&'static str]| list.iter().map(|text| (*text).into()).collect();
    Some(ResourceInfo {
        gvr: resource.gvr.clone(),
        gvk: resource.gvk.clone(),
        list_kind: resource.list_kind.into(),
        singular: resource.singular.into(),
        short_names: texts(&resource.short_names),
        categories: texts(&resource.categories),
        namespaced: resource.namespaced,
        verbs: texts(&resource.verbs),
        subresources: Vec::new(),
        storage: resource.gvk.clone(),
        prefix: "".into(),
        custom: false,
    })
}

impl Virtual {
    pub async fn serve(self, call: &mut Call) -> Result<Response<Body>, Status> {
        match self {
            Self::ComponentStatus => component_statuses(call),
            _ if call.info.verb != "create" => Ok(no_such_method()),
            Self::Binding => pods::bind_legacy(call).await,
            _ => self.review(call).await,
        }
    }

    async fn review(self, call: &mut Call) -> Result<Response<Body>, Status> {
        let accepted = call.accepted(false)?;
        let write = options::write("CreateOptions", &call.query)?;
        let kind =
            kind_of(&call.info).ok_or_else(|| Status::not_found("", &call.info.resource, ""))?;
        let mut object = call.read_object(&kind, write.field_validation).await?;
        let shows_owner = !matches!(self, Self::SelfRulesReview | Self::SelfSubjectReview);
        if shows_owner {
            object = tokens::own(call, &kind, "", object);
        }
        match self {
            Self::AccessReview => reviews::access(call, &mut object)?,
            Self::SelfAccessReview => reviews::self_access(call, &mut object)?,
            Self::LocalAccessReview => reviews::local_access(call, &mut object)?,
            Self::SelfRulesReview => reviews::self_rules(call, &mut object)?,
            Self::SelfSubjectReview => reviews::self_subject(call, &mut object),
            _ => tokens::review(call, &mut object).await?,
        }
        object.metadata_mut();
        let body = wire::encode(&object, accepted.format, accepted.pretty)?;
        Ok(respond::bytes(201, accepted.format.media_type(), body))
    }
}

fn kind_of(info: &RequestInfo) -> Option<GroupVersionKind> {
    Some(schema().resource(&info.group, &info.version, &info.resource)?.gvk.clone())
}

/// A relic that dashboards still read: the store's health, and nothing of other processes.
fn component_statuses(call: &Call) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let status = |name: &str| {
        value!({
            "apiVersion": "v1",
            "kind": "ComponentStatus",
            "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}],
        })
    };
    call.context.warn("v1 ComponentStatus is deprecated in v1.19+");
    let object = match (call.info.verb.as_str(), call.info.name.as_str()) {
        ("list", "") => wire::object([
            ("kind", "ComponentStatusList".into()),
            ("apiVersion", "v1".into()),
            ("metadata", value!({})),
            ("items", vec![status("etcd-0")].into()),
        ]),
        ("get", "etcd-0") => Object::from_value(status("etcd-0")).unwrap_or_default(),
        ("get", name) => return Err(Status::not_found("", "componentstatus", name)),
        _ => return Ok(no_such_method()),
    };
    let body = wire::encode(&object, accepted.format, accepted.pretty)?;
    Ok(respond::bytes(200, accepted.format.media_type(), body))
}
