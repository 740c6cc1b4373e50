//! Get, list, create, update and delete of stored objects, and the forms they are sent in.

use std::sync::Arc;

use api::Status;
use bytes::Bytes;
use http::Response;
use machinery::{Map, Object, Value, codec};
use registry::{
    CreateOptions, Deleted, ListResult, Resource, UpdateOptions,
    table::{self, IncludeObject, TableContext},
};
use stdx::Timestamp;

use super::options;
use crate::{
    body::Body,
    negotiate::{self, Accepted, Format, Shape},
    pipeline::Call,
    respond, wire,
};

pub async fn get(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let info = &call.info;
    let item = resource.get(&info.namespace, &info.name, &options::get(&call.query)).await?;
    if accepted.shape == Shape::Whole && accepted.format == Format::Json && !accepted.pretty {
        return Ok(call.reply(200, negotiate::JSON, item.json()?));
    }
    let object = item.object()?;
    send(call, resource, 200, &object, &accepted)
}

pub async fn list(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let options = options::list(&call.server, &call.query, false)?;
    let namespace = (!call.info.namespace.is_empty()).then_some(call.info.namespace.as_str());
    let list = resource.list(namespace, &options).await?;
    send_list(call, resource, &list, &accepted)
}

pub async fn create(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let write = options::write("CreateOptions", &call.query)?;
    let mut object = call.read_object(&resource.info().gvk, write.field_validation).await?;
    place(call, resource, &mut object)?;
    let stored = resource
        .create(
            &call.context,
            &call.info.namespace,
            object,
            &CreateOptions::default(),
            &call.server.admission,
        )
        .await?;
    send(call, resource, 201, &stored, &accepted)
}

pub async fn update(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let write = options::write("UpdateOptions", &call.query)?;
    let mut object = call.read_object(&resource.info().gvk, write.field_validation).await?;
    check_name(call, &object)?;
    place(call, resource, &mut object)?;
    let replace = move |_: Option<&Object>| Ok(object.clone());
    let info = &call.info;
    let (stored, created) = resource
        .update(
            &call.context,
            &info.namespace,
            &info.name,
            &info.subresource,
            &replace,
            &UpdateOptions::default(),
            &call.server.admission,
        )
        .await?;
    send(call, resource, if created { 201 } else { 200 }, &stored, &accepted)
}

pub async fn delete(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let body = read_delete_options(call).await?;
    let (options, dry_run) = options::delete(&call.query, body.as_ref())?;
    call.context.dry_run |= dry_run;
    let info = &call.info;
    let deleted = resource
        .delete(&call.context, &info.namespace, &info.name, &options, &call.server.admission)
        .await?;
    let code =
        if !deleted.is_gone() && options.orphan_dependents == Some(false) { 202 } else { 200 };
    match deleted {
        Deleted::Object { object, .. } => send(call, resource, code, &object, &accepted),
        Deleted::Status { name, uid } => {
            let status = respond::success(&name, &info.group, &info.resource, &uid);
            Ok(respond::object(code, &status, &Accepted { shape: Shape::Whole, ..accepted }))
        }
    }
}

pub async fn delete_collection(
    call: &mut Call,
    resource: &Arc<Resource>,
) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let selection = options::list(&call.server, &call.query, false)?;
    let body = read_delete_options(call).await?;
    let (options, dry_run) = options::delete(&call.query, body.as_ref())?;
    call.context.dry_run |= dry_run;
    let namespace = (!call.info.namespace.is_empty()).then_some(call.info.namespace.as_str());
    let list = resource
        .delete_collection(&call.context, namespace, &options, &selection, &call.server.admission)
        .await?;
    send_list(call, resource, &list, &accepted)
}

async fn read_delete_options(call: &mut Call) -> Result<Option<Object>, Status> {
    let body = call.read_body().await?;
    if body.is_empty() {
        return Ok(None);
    }
    let format = negotiate::request(&call.headers)?;
    let parsed =
        codec::parse(&body, format).map_err(|error| Status::bad_request(error.to_string()))?.0;
    let object = Object::from_value(parsed)
        .ok_or_else(|| Status::bad_request("DeleteOptions must be an object"))?;
    // Clients name the kind in the group of the resource as well.
    match object.kind() {
        "" | "DeleteOptions" => Ok(Some(object)),
        other => Err(Status::bad_request(format!(
            "no kind {other:?} is registered for version {:?} in scheme \"pkg/runtime/scheme.go:111\"",
            object.api_version()
        ))),
    }
}

/// Puts the namespace of the URL into an object that names none; another one is an error.
fn place(call: &Call, resource: &Resource, object: &mut Object) -> Result<(), Status> {
    if !resource.info().namespaced {
        return Ok(());
    }
    match object.namespace() {
        "" => object.set_namespace(&call.info.namespace),
        own if own == call.info.namespace => {}
        _ => {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Status::bad_request(why));
        }
    }
    Ok(())
}

/// The name of an updated object is that of the URL.
pub fn check_name(call: &Call, object: &Object) -> Result<(), Status> {
    let (name, url) = (object.name(), call.info.name.as_str());
    if name == url {
        return Ok(());
    }
    if name.is_empty() {
        let text = format!(
            "the name of the object ({url} based on URL) was undeterminable: name must be provided"
        );
        return Err(Status::bad_request(text));
    }
    Err(Status::bad_request(format!(
        "the name of the object ({name}) does not match the name on the URL ({url})"
    )))
}

/// One object in the form asked for.
pub fn send(
    call: &Call,
    resource: &Resource,
    code: u16,
    object: &Object,
    accepted: &Accepted,
) -> Result<Response<Body>, Status> {
    let shaped = match accepted.shape {
        Shape::Whole => object.clone(),
        Shape::Metadata => metadata_of(object, accepted),
        Shape::Table => {
            let shaper = Shaper::new(call, resource, accepted)?;
            shaper.table(
                std::iter::once(Ok(object.clone())),
                list_metadata(object.resource_version(), "", None),
                true,
            )?
        }
    };
    let body = wire::encode(&shaped, accepted.format, accepted.pretty)?;
    Ok(call.reply(code, accepted.format.media_type(), body))
}

fn send_list(
    call: &Call,
    resource: &Resource,
    list: &ListResult,
    accepted: &Accepted,
) -> Result<Response<Body>, Status> {
    let whole_json = accepted.shape == Shape::Whole && accepted.format == Format::Json;
    if whole_json && !accepted.pretty {
        return Ok(call.reply(200, negotiate::JSON, list.json()?));
    }
    let body = match (accepted.shape, accepted.format) {
        (Shape::Whole, Format::Protobuf) => protobuf_list(resource, list)?,
        (Shape::Whole, _) => {
            let mut tree = Object::from_json(&list.json()?).map_err(Status::internal)?;
            let items = list.objects().map(|item| item.map(Object::into_value));
            tree.root_mut().insert("items", items.collect::<Result<Vec<Value>, _>>()?);
            wire::encode(&tree, accepted.format, accepted.pretty)?
        }
        (Shape::Metadata, _) => {
            let items: Result<Vec<Value>, Status> =
                list.objects().map(|item| Ok(metadata_of(&item?, accepted).into_value())).collect();
            let mut tree = Object::default();
            tree.root_mut().insert("kind", "PartialObjectMetadataList");
            tree.root_mut().insert("apiVersion", meta_version(accepted));
            tree.root_mut().insert("metadata", metadata_of_list(list));
            tree.root_mut().insert("items", items?);
            wire::encode(&tree, accepted.format, accepted.pretty)?
        }
        (Shape::Table, _) => {
            let shaper = Shaper::new(call, resource, accepted)?;
            let table = shaper.table(list.objects(), metadata_of_list(list), true)?;
            wire::encode(&table, accepted.format, accepted.pretty)?
        }
    };
    Ok(call.reply(200, accepted.format.media_type(), body))
}

fn protobuf_list(resource: &Resource, list: &ListResult) -> Result<Bytes, Status> {
    let items: Result<Vec<Bytes>, Status> =
        list.objects().map(|item| wire::encode(&item?, Format::Protobuf, false)).collect();
    let info = resource.info();
    let (version, metadata) = (info.gvk.api_version(), metadata_of_list(list));
    let items = items?;
    codec::protobuf_list(&version, &info.list_kind, &metadata, items.iter().map(|item| &item[..]))
        .map_err(Status::internal)
}

fn metadata_of_list(list: &ListResult) -> Map {
    list_metadata(&list.revision.to_string(), &list.continue_token, list.remaining)
}

fn list_metadata(revision: &str, continue_token: &str, remaining: Option<i64>) -> Map {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion", revision);
    if !continue_token.is_empty() {
        metadata.insert("continue", continue_token);
    }
    if let Some(remaining) = remaining {
        metadata.insert("remainingItemCount", remaining);
    }
    metadata
}

fn meta_version(accepted: &Accepted) -> &'static str {
    if accepted.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// `PartialObjectMetadata` of an object.
pub fn metadata_of(object: &Object, accepted: &Accepted) -> Object {
    let mut partial = Object::from_value(table::partial_metadata(object)).unwrap_or_default();
    partial.root_mut().insert("apiVersion", meta_version(accepted));
    partial
}

/// Makes Tables of one resource.
pub struct Shaper<'a> {
    resource: &'a Resource,
    context: TableContext,
    pub include: IncludeObject,
    version: &'static str,
}

impl<'a> Shaper<'a> {
    pub fn new(call: &Call, resource: &'a Resource, accepted: &Accepted) -> Result<Self, Status> {
        let text = call.query.text("includeObject");
        let include = IncludeObject::parse(text).ok_or_else(|| {
            Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {text:?}: \
                 must be 'Metadata', 'Object', 'None', or empty"
            ))
        })?;
        Ok(Self::at(resource, accepted, call.server.env.now(), include))
    }

    /// Ages are counted up to `now`.
    pub fn at(
        resource: &'a Resource,
        accepted: &Accepted,
        now: Timestamp,
        include: IncludeObject,
    ) -> Self {
        Self { resource, context: TableContext { now }, include, version: meta_version(accepted) }
    }

    /// A Table of these objects; of a watch, only the first one has column definitions.
    pub fn table(
        &self,
        objects: impl Iterator<Item = Result<Object, Status>>,
        metadata: Map,
        with_columns: bool,
    ) -> Result<Object, Status> {
        let columns = self.resource.columns();
        let rows: Result<Vec<Value>, Status> = objects
            .map(|object| Ok(self.resource.row(&object?, &self.context, self.include)))
            .collect();
        let mut table = Map::new();
        table.insert("kind", "Table");
        table.insert("apiVersion", self.version);
        table.insert("metadata", metadata);
        table.insert(
            "columnDefinitions",
            if with_columns { table::definitions(columns) } else { Value::Null },
        );
        table.insert("rows", rows?);
        Ok(Object::from_map(table))
    }

    /// A Table without rows that only tells how far a watch is.
    pub fn bookmark(&self, object: &Object, with_columns: bool) -> Result<Object, Status> {
        self.of_event(object.clone(), with_columns)
    }

    /// The Table of one watch event.
    pub fn of_event(&self, object: Object, with_columns: bool) -> Result<Object, Status> {
        let metadata = list_metadata(object.resource_version(), "", None);
        self.table(std::iter::once(Ok(object)), metadata, with_columns)
    }
}
