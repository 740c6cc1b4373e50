//! Where a runtime is reached, and the clients over it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{body::Body, service::Routes, transport::Channel};
use tower_service::Service;

use crate::v1::{
    image_service_client::ImageServiceClient,
    image_service_server::{ImageService, ImageServiceServer},
    runtime_service_client::RuntimeServiceClient,
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};

/// The client of the runtime service, whether the runtime is embedded or remote.
pub type RuntimeClient = RuntimeServiceClient<Endpoint>;
/// The client of the image service, whether the runtime is embedded or remote.
pub type ImageClient = ImageServiceClient<Endpoint>;

/// The largest message on either side, in bytes; the limit that kubelets and runtimes share.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no runtime endpoint: it must read unix:///path/to/the.sock")]
    NotAnEndpoint(String),
    #[error("the container runtime at {address} cannot be reached")]
    Connect { address: String, source: tonic::transport::Error },
}

/// A runtime that can be called: embedded in this process, or behind a unix socket.
#[derive(Clone, Debug)]
pub struct Endpoint(Way);

#[derive(Clone, Debug)]
enum Way {
    InProcess(Routes),
    Socket(Channel),
}

impl Endpoint {
    /// The runtime embedded in this process.
    pub fn in_process<R>(runtime: Arc<R>) -> Self
    where
        R: RuntimeService + ImageService,
    {
        Self(Way::InProcess(routes(runtime)))
    }

    /// A runtime behind a socket, `unix:///run/containerd/containerd.sock`, connected now. The
    /// connection is made again by itself when it is lost.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        let channel = transport(address)?
            .connect()
            .await
            .map_err(|source| Error::Connect { address: address.to_owned(), source })?;
        Ok(Self(Way::Socket(channel)))
    }

    /// Like [`Endpoint::connect`], but the first call makes the connection.
    pub fn connect_lazy(address: &str) -> Result<Self, Error> {
        Ok(Self(Way::Socket(transport(address)?.connect_lazy())))
    }

    pub fn runtime(&self) -> RuntimeClient {
        RuntimeServiceClient::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn image(&self) -> ImageClient {
        ImageServiceClient::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// Both services of `runtime`, for a server on a socket (`Server::add_routes`).
pub fn routes<R>(runtime: Arc<R>) -> Routes
where
    R: RuntimeService + ImageService,
{
    let runtime_service = RuntimeServiceServer::from_arc(runtime.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let image_service = ImageServiceServer::from_arc(runtime)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Routes::new(runtime_service).add_service(image_service)
}

fn transport(address: &str) -> Result<tonic::transport::Endpoint, Error> {
    let invalid = || Error::NotAnEndpoint(address.to_owned());
    let path = address.strip_prefix("unix://").ok_or_else(invalid)?;
    if !path.starts_with('/') {
        return Err(invalid());
    }
    tonic::transport::Endpoint::from_shared(address.to_owned()).map_err(|_| invalid())
}

impl Service<http::Request<Body>> for Endpoint {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match &mut self.0 {
            // A handler in this process always has room.
            Way::InProcess(_) => Poll::Ready(Ok(())),
            Way::Socket(channel) => channel.poll_ready(cx),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match &mut self.0 {
            Way::InProcess(routes) => {
                let answer = routes.call(request);
                Box::pin(async move { Ok(answer.await.unwrap_or_else(|never| match never {})) })
            }
            Way::Socket(channel) => Box::pin(channel.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_endpoint_must_be_a_socket_path() {
        for bad in ["", "/run/x.sock", "tcp://127.0.0.1:1", "unix://x.sock", "http://[::1"] {
            let error = Endpoint::connect_lazy(bad).unwrap_err();
            assert!(matches!(error, Error::NotAnEndpoint(_)), "{bad}: {error}");
        }
        assert!(Endpoint::connect_lazy("unix:///run/some.sock").is_ok());
    }

    #[tokio::test]
    async fn an_absent_runtime_is_told_by_its_address() {
        let error = Endpoint::connect("unix:///nowhere/runtime.sock").await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/runtime.sock"), "{error}");
    }
}
