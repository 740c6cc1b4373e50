//! What the files of a configMap, secret, downwardAPI or projected volume hold.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};
use machinery::Object;
use stdx::Timestamp;

use super::{
    atomic_writer::{FileContent, Files},
    token,
};
use crate::{
    context::Context,
    downward,
    objects::{Kind, Wake},
    pod::{Pod, PodExt},
};

/// The files that a volume is to show.
#[derive(Default)]
pub struct Content {
    pub files: Files,
    pub refresh_at: Option<Timestamp>,
}

/// The directory name of the volume's kind, `None` when it is made in another way.
pub fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.config_map.is_some() {
        Some("configmap")
    } else if volume.secret.is_some() {
        Some("secret")
    } else if volume.downward_api.is_some() {
        Some("downward-api")
    } else if volume.projected.is_some() {
        Some("projected")
    } else {
        None
    }
}

const DEFAULT_MODE: i32 = 0o644;

pub async fn gather(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    wake: &Wake,
) -> Result<Content, String> {
    let mut content = Content::default();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        let reference = Reference { kind: Kind::ConfigMap, name: &source.name, optional };
        let object = reference.fetch(context, pod, wake).await?;
        content.add(&reference, object, source.items.as_deref(), mode)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let optional = source.optional == Some(true);
        let reference = Reference { kind: Kind::Secret, name, optional };
        let object = reference.fetch(context, pod, wake).await?;
        content.add(&reference, object, source.items.as_deref(), mode)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        content.add_downward(context, pod, source.items.as_deref().unwrap_or_default(), mode)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            content.add_projection(context, pod, part, mode, wake).await?;
        }
    }
    Ok(content)
}

struct Reference<'a> {
    kind: Kind,
    name: &'a str,
    optional: bool,
}

impl Reference<'_> {
    /// `None` when the object is missing and may be.
    async fn fetch(
        &self,
        context: &Context,
        pod: &Pod,
        wake: &Wake,
    ) -> Result<Option<Object>, String> {
        let found =
            context.objects.get(self.kind, pod.namespace(), self.name, pod.uid(), wake).await;
        match found {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() && self.optional => Ok(None),
            Err(error) => Err(stdx::chain(&error).to_string()),
        }
    }
}

impl Content {
    fn insert(&mut self, path: &str, bytes: Vec<u8>, mode: i32, owner: Option<u32>) {
        let file = FileContent { bytes, mode: mode as u32 & 0o777, owner };
        self.files.insert(path.to_owned(), file);
    }

    fn add(
        &mut self,
        reference: &Reference,
        object: Option<Object>,
        items: Option<&[KeyToPath]>,
        mode: i32,
    ) -> Result<(), String> {
        let Some(object) = object else { return Ok(()) };
        let mut data = data(reference.kind, &object);
        let Some(items) = items else {
            for (key, bytes) in data {
                self.insert(&key, bytes, mode, None);
            }
            return Ok(());
        };
        for item in items {
            match data.remove(&item.key) {
                Some(bytes) => {
                    self.insert(&item.path, bytes.clone(), item.mode.unwrap_or(mode), None);
                    // One key may be shown at several paths.
                    data.insert(item.key.clone(), bytes);
                }
                None if reference.optional => {}
                None if reference.kind == Kind::Secret => {
                    return Err("references non-existent secret key: ".to_owned() + &item.key);
                }
                None => {
                    return Err(
                        "configmap references non-existent config key: ".to_owned() + &item.key
                    );
                }
            }
        }
        Ok(())
    }

    fn add_downward(
        &mut self,
        context: &Context,
        pod: &Pod,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
    ) -> Result<(), String> {
        for item in items {
            let value = if let Some(field) = &item.field_ref {
                downward::pod_field(pod, &field.field_path, context)?
            } else if let Some(resource) = &item.resource_field_ref {
                let name = resource.container_name.as_deref().unwrap_or_default();
                downward::container_resource(pod, name, resource, &context.config)?
            } else {
                return Err(format!(
                    "downwardAPI item {:?} names neither field nor resource",
                    item.path
                ));
            };
            self.insert(&item.path, value.into_bytes(), item.mode.unwrap_or(mode), None);
        }
        Ok(())
    }

    async fn add_projection(
        &mut self,
        context: &Context,
        pod: &Pod,
        part: &VolumeProjection,
        mode: i32,
        wake: &Wake,
    ) -> Result<(), String> {
        if let Some(source) = &part.config_map {
            let optional = source.optional == Some(true);
            let reference = Reference { kind: Kind::ConfigMap, name: &source.name, optional };
            let object = reference.fetch(context, pod, wake).await?;
            self.add(&reference, object, source.items.as_deref(), mode)
        } else if let Some(source) = &part.secret {
            let optional = source.optional == Some(true);
            let reference = Reference { kind: Kind::Secret, name: &source.name, optional };
            let object = reference.fetch(context, pod, wake).await?;
            self.add(&reference, object, source.items.as_deref(), mode)
        } else if let Some(source) = &part.downward_api {
            self.add_downward(context, pod, source.items.as_deref().unwrap_or_default(), mode)
        } else if let Some(source) = &part.service_account_token {
            let issued = token::get(context, pod, source).await?;
            let security = pod.spec().security_context.as_ref();
            let group = security.and_then(|security| security.fs_group);
            let owner = token::owner(pod);
            // Only the pod's own user or group may read its token, when either is known.
            let mode = if owner.is_some() || group.is_some() { 0o600 } else { mode };
            self.insert(&source.path, issued.token.into_bytes(), mode, owner);
            let at = issued.refresh_at;
            self.refresh_at = Some(self.refresh_at.map_or(at, |known| known.min(at)));
            Ok(())
        } else if part.cluster_trust_bundle.is_some() {
            Err("projected clusterTrustBundle sources are not supported by this node".into())
        } else if part.pod_certificate.is_some() {
            Err("projected podCertificate sources are not supported by this node".into())
        } else {
            Ok(())
        }
    }
}

/// The keys of a ConfigMap or Secret with their bytes.
pub fn data(kind: Kind, object: &Object) -> BTreeMap<String, Vec<u8>> {
    let texts = |field: &str| -> Vec<(String, String)> {
        let map = object.map_at(&[field]);
        let entries = map.into_iter().flat_map(|map| map.iter());
        entries
            .filter_map(|(key, value)| Some((key.to_string(), value.as_str()?.to_owned())))
            .collect()
    };
    let decode = |text: &str| BASE64_STANDARD.decode(text).unwrap_or_default();
    let plain = texts("data").into_iter().map(|(key, text)| match kind {
        Kind::Secret => (key, decode(&text)),
        Kind::ConfigMap => (key, text.into_bytes()),
    });
    let binary = texts("binaryData").into_iter().map(|(key, text)| (key, decode(&text)));
    plain.chain(binary).collect()
}
