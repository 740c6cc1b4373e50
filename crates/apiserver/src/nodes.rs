//! The one door to the nodes: logs, exec, attach, port-forward, metrics and the proxy go through
//! a [`NodeDialler`].

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use machinery::{Object, Value};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// The port of a kubelet that tells none.
pub const KUBELET_PORT: u16 = 10250;

/// A stream of bytes to a node.
pub trait NodeStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> NodeStream for T {}

/// Opens streams to nodes: by TLS with a verified certificate on both sides, or over a
/// connection that the node's agent opened.
#[async_trait]
pub trait NodeDialler: Send + Sync {
    /// A stream that speaks HTTP/1.1 with the kubelet's endpoint, already authenticated.
    async fn connect(&self, node: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError>;

    /// A plain stream to an address in the pod network, for the pod and service proxies.
    async fn connect_pod(
        &self,
        address: IpAddr,
        port: u16,
    ) -> Result<Box<dyn NodeStream>, DialError> {
        let stream = TcpStream::connect((address, port)).await;
        let target = format!("{address}:{port}");
        Ok(Box::new(stream.map_err(|source| DialError::Connect { target, source })?))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("node {node} has no address")]
    NoAddress { node: String },
    #[error("dial {target}")]
    Connect { target: String, source: std::io::Error },
    #[error("this server has no way to its nodes")]
    NoDialler,
    #[error("{0} is no host name")]
    HostName(String),
}

/// Where a node's kubelet listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    pub name: String,
    /// An address or name, by the usual preference: internal address first.
    pub host: String,
    pub port: u16,
}

impl NodeAddress {
    /// Reads `status.addresses` and the kubelet's port of a Node.
    pub fn of(node: &Object) -> Result<Self, DialError> {
        let addresses = node.list_at(&["status", "addresses"]);
        let by_type = |wanted: &str| {
            let found =
                addresses.iter().find(|a| a.get("type").and_then(Value::as_str) == Some(wanted));
            found.and_then(|a| a.get("address")).and_then(Value::as_str)
        };
        let order = ["InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS", "Hostname"];
        let host = order.into_iter().find_map(by_type);
        let port = node.i64_at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
        Ok(Self {
            name: node.name().into(),
            host: host.ok_or_else(|| DialError::NoAddress { node: node.name().into() })?.into(),
            port: port
                .and_then(|p| u16::try_from(p).ok())
                .filter(|&p| p > 0)
                .unwrap_or(KUBELET_PORT),
        })
    }
}

/// Connects straight to the kubelet's port with the server's kubelet client certificate.
pub struct DirectDialler {
    tls: tokio_rustls::TlsConnector,
}

impl DirectDialler {
    /// `ca_pem` signs the kubelets' serving certificates.
    pub fn new(
        ca_pem: &[u8],
        chain_pem: &[u8],
        key_pem: &[u8],
    ) -> Result<Self, crate::tls::TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(chain_pem).collect::<Result<Vec<_>, _>>()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key_pem)?)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(config).into() })
    }
}

#[async_trait]
impl NodeDialler for DirectDialler {
    async fn connect(&self, node: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError> {
        let target = format!("{}:{}", node.host, node.port);
        let failed = |source| DialError::Connect { target: target.clone(), source };
        let name = ServerName::try_from(node.host.clone())
            .map_err(|_| DialError::HostName(node.host.clone()))?;
        let tcp = TcpStream::connect((node.host.as_str(), node.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        Ok(Box::new(self.tls.connect(name, tcp).await.map_err(failed)?))
    }
}

/// For servers without nodes: every request to one fails with a clear text.
pub struct NoNodes;

#[async_trait]
impl NodeDialler for NoNodes {
    async fn connect(&self, _: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError> {
        Err(DialError::NoDialler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn prefers_the_internal_address() {
        let node = Object::from_value(value!({
            "metadata": {"name": "n"},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "n.example"},
                    {"type": "InternalIP", "address": "192.0.2.7"},
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 12250}},
            },
        }))
        .unwrap();
        let address = NodeAddress::of(&node).unwrap();
        assert_eq!(
            address,
            NodeAddress { name: "n".into(), host: "192.0.2.7".into(), port: 12250 }
        );
        assert!(NodeAddress::of(&Object::new("v1", "Node", "", "n")).is_err());
    }
}
