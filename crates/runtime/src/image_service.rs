//! CRI's image service.

use cri::v1::{self, image_service_server::ImageService};
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status};

use crate::{
    Credentials, Image, Runtime,
    error::{Error, Result},
    stats,
};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Runtime {
    type StreamImagesStream = BoxStream<'static, Result<v1::StreamImagesResponse, Status>>;

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        let images = self.matching(request.into_inner().filter);
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.matching(request.into_inner().filter);
        let response = v1::StreamImagesResponse { images };
        Ok(Response::new(futures::stream::iter([Ok(response)]).boxed()))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let name = name_of(request.into_inner().image)?;
        let image = self.images().find(&name).map(|image| message(&image));
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let name = name_of(request.image)?;
        let credentials = credentials(request.auth)?;
        let runtime = self.clone();
        let pulled = self.detached(async move {
            runtime.images().clone().pull(&runtime.0.env, &name, credentials).await
        });
        let image_ref = pulled.await?.id;
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        let name = name_of(request.into_inner().image)?;
        let images = self.images().clone();
        let in_use: Vec<String> = {
            let state = self.state();
            state.containers.values().map(|container| container.record.image.id.clone()).collect()
        };
        self.blocking(move || match images.find(&name) {
            Some(image) if in_use.contains(&image.id) => {
                let text = format!("the image {name} is used by a container");
                Err(Error::Precondition(text))
            }
            _ => images.remove(&name),
        })
        .await?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        let runtime = self.clone();
        Ok(Response::new(self.blocking(move || stats::file_systems(&runtime)).await?))
    }
}

impl Runtime {
    fn matching(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let wanted = filter.and_then(|filter| filter.image).map(|image| image.image);
        match wanted.filter(|name| !name.is_empty()) {
            Some(name) => self.images().find(&name).iter().map(message).collect(),
            None => self.images().list().iter().map(message).collect(),
        }
    }
}

fn name_of(image: Option<v1::ImageSpec>) -> Result<String> {
    image
        .map(|image| image.image)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Error::Invalid("the request names no image".to_owned()))
}

fn message(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse::<i64>().ok() };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size_bytes,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: Some(v1::ImageSpec { image: image.reference(), ..Default::default() }),
        pinned: false,
    }
}

fn credentials(auth: Option<v1::AuthConfig>) -> Result<Credentials> {
    let Some(auth) = auth else { return Ok(Credentials::None) };
    if !auth.registry_token.is_empty() {
        return Ok(Credentials::Token(auth.registry_token));
    }
    if !auth.username.is_empty() {
        return Ok(Credentials::Password { user: auth.username, password: auth.password });
    }
    if auth.auth.is_empty() {
        return Ok(Credentials::None);
    }
    let malformed = || Error::Invalid("the registry credentials are malformed".to_owned());
    let bytes = decode_base64(&auth.auth).ok_or_else(malformed)?;
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let (user, password) = text.split_once(':').ok_or_else(malformed)?;
    Ok(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text.trim_end_matches('\0')).ok()
}
