//! Client certificates: common name is the user, organizations are its groups.

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use stdx::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A set of certificate authorities that client certificates are checked against.
#[derive(Clone)]
pub struct ClientAuthority(Arc<dyn ClientCertVerifier>);

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("no certificate in PEM form")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("certificate authority refused")]
    Refused(#[source] rustls::Error),
    #[error("no usable certificate authority")]
    Empty(#[source] rustls::server::VerifierBuilderError),
}

/// Who a verified certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateUser {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// `X509SHA256=…`: which credential this was, for the audit log.
    pub credential_id: String,
    pub not_after: Timestamp,
}

impl ClientAuthority {
    pub fn from_pem(pem: &[u8]) -> Result<Self, AuthorityError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots
                .add(certificate.map_err(AuthorityError::Pem)?)
                .map_err(AuthorityError::Refused)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        Ok(Self(builder.build().map_err(AuthorityError::Empty)?))
    }

    /// Whom the chain (leaf first) names, if it leads to one of the authorities, is valid now and
    /// may be used by a client.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Option<CertificateUser> {
        let (leaf, intermediates) = chain.split_first()?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(0) as u64));
        self.0.verify_client_cert(leaf, intermediates, time).ok()?;
        read(leaf)
    }
}

fn read(leaf: &CertificateDer<'_>) -> Option<CertificateUser> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let subject = certificate.subject();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().ok().map(str::to_owned)
    };
    let digest = Sha256::digest(leaf.as_ref());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(CertificateUser {
        common_name: subject.iter_common_name().next().and_then(text)?,
        organizations: subject.iter_organization().filter_map(text).collect(),
        credential_id: format!("X509SHA256={hex}"),
        not_after: Timestamp::from_secs(certificate.validity().not_after.timestamp()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Authority;

    #[test]
    fn names_the_user_of_a_certificate_of_ours_only() {
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let authority = ClientAuthority::from_pem(ours.ca_pem.as_bytes()).unwrap();
        let now = Timestamp::from_secs(1_790_000_000);
        let (chain, _) = ours.client("jane", &["ops"]);
        let user = authority.verify(&chain, now).unwrap();
        assert_eq!(user.common_name, "jane");
        assert_eq!(user.organizations, ["ops"]);
        let (chain, _) = other.client("jane", &["system:masters"]);
        assert_eq!(authority.verify(&chain, now), None);
        let long_after = Timestamp::from_secs(100_000_000_000);
        let (chain, _) = ours.client("jane", &[]);
        assert_eq!(authority.verify(&chain, long_after), None);
    }
}
