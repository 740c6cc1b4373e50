//! The four kinds of patch.

use std::sync::Arc;

use api::{Cause, GroupVersionKind, Reason, Status, status::Details};
use bytes::Bytes;
use http::Response;
use machinery::{
    Object,
    apply::{self, Context},
    codec,
    fields::{self, FieldValidation},
    patch::{PatchType, patch_object},
};
use registry::{Resource, UpdateOptions};

use super::{options, resource};
use crate::{body::Body, negotiate, pipeline::Call};

/// A patch as it was sent.
pub struct Patch {
    kind: PatchType,
    body: Bytes,
    gvk: GroupVersionKind,
    validation: FieldValidation,
}

impl Patch {
    /// Reads the body and checks the options.
    pub async fn read(call: &mut Call, gvk: &GroupVersionKind) -> Result<Self, Status> {
        let kind = PatchType::of_media_type(&negotiate::content_type(&call.headers));
        let kind = kind.ok_or_else(unsupported)?;
        let write = options::write("PatchOptions", &call.query)?;
        check_apply_options(call, kind)?;
        let body = call.read_body().await?;
        Ok(Self { kind, body, gvk: gvk.clone(), validation: write.field_validation })
    }

    pub fn is_apply(&self) -> bool {
        self.kind == PatchType::Apply
    }

    /// The patched object. Called again with a newer object when a write lost a race.
    pub fn apply_to(&self, current: &Object, call: &Call) -> Result<Object, Status> {
        let (object, warnings) =
            patch_object(current, &self.body, self.kind, &self.gvk, self.validation)?;
        for warning in warnings {
            call.context.warn(warning);
        }
        Ok(object)
    }

    /// The configuration of a server-side apply: what was sent and nothing else.
    fn configuration(&self, call: &Call) -> Result<Object, Status> {
        // Read as any body first, for what is wrong with it; unknown fields fail below.
        let (checked, _) = fields::decode_body(
            &self.body,
            codec::Format::Yaml,
            &self.gvk,
            FieldValidation::Ignore,
        )?;
        let (value, _) = codec::parse(&self.body, codec::Format::Yaml)
            .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
        let mut config = Object::from_value(value)
            .ok_or_else(|| Status::bad_request("apply needs an object"))?;
        config.set_gvk(&self.gvk);
        if checked.name().is_empty() {
            config.set_name(&call.info.name);
        }
        resource::check_name(call, &config)?;
        Ok(config)
    }

    fn server_side(
        &self,
        current: Option<&Object>,
        config: &Object,
        call: &Call,
    ) -> Result<Object, Status> {
        let api_version = self.gvk.api_version();
        let context =
            Context::built_in(&self.gvk, &api_version, &call.info.subresource, call.context.time);
        let context =
            context.ok_or_else(|| Status::internal(format!("{} has no schema", self.gvk)))?;
        apply::apply(
            current,
            config,
            &call.context.field_manager,
            call.query.flag("force"),
            &context,
        )
    }
}

fn unsupported() -> Status {
    let status = Status::new(415, Reason::UnsupportedMediaType, "415: Unsupported Media Type");
    status.with_details(Details::default())
}

fn check_apply_options(call: &Call, kind: PatchType) -> Result<(), Status> {
    let cause = |field: &str, reason: &str, message: &str| Cause {
        reason: reason.into(),
        message: message.into(),
        field: field.into(),
    };
    let mut causes = Vec::new();
    match kind {
        PatchType::Apply if call.query.text("fieldManager").is_empty() => {
            causes.push(cause(
                "fieldManager",
                "FieldValueRequired",
                "Required value: is required for apply patch",
            ));
        }
        PatchType::Apply => {}
        _ if call.query.contains("force") => {
            causes.push(cause(
                "force",
                "FieldValueForbidden",
                "Forbidden: may not be specified for non-apply patch",
            ));
        }
        _ => {}
    }
    options::invalid_when("PatchOptions", causes)
}

pub async fn patch(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let patch = Patch::read(call, &resource.info().gvk).await?;
    let call = &*call;
    let config = patch.is_apply().then(|| patch.configuration(call)).transpose()?;
    let change = |current: Option<&Object>| match (&config, current) {
        (Some(config), current) => patch.server_side(current, config, call),
        (None, Some(current)) => patch.apply_to(current, call),
        (None, None) => Err(resource.info().not_found(&call.info.name)),
    };
    let info = &call.info;
    let options = UpdateOptions { apply: patch.is_apply() };
    let admission = &call.server.admission;
    let (stored, created) = resource
        .update(
            &call.context,
            &info.namespace,
            &info.name,
            &info.subresource,
            &change,
            &options,
            admission,
        )
        .await?;
    resource::send(call, resource, if created { 201 } else { 200 }, &stored, &accepted)
}
