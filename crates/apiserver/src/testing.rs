//! Fixtures of the tests of this crate: a certificate authority and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;

pub struct Authority {
    pub ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("entropy");
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).expect("a valid request");
        Self { ca_pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A client certificate chain and its key in PEM.
    pub fn client(&self, user: &str, groups: &[&str]) -> (Vec<CertificateDer<'static>>, String) {
        let mut params = params(user, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = self.sign(params);
        (vec![certificate.der().clone()], key)
    }

    /// A serving certificate for the loopback addresses: certificate and key in PEM.
    pub fn server(&self) -> (String, String) {
        let mut params = params("server", &[]);
        let names = ["localhost", "127.0.0.1"];
        params.subject_alt_names =
            CertificateParams::new(names.map(String::from)).expect("valid names").subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate, key) = self.sign(params);
        (certificate.pem(), key)
    }

    fn sign(&self, params: CertificateParams) -> (rcgen::Certificate, String) {
        let key = KeyPair::generate().expect("entropy");
        let certificate = params.signed_by(&key, &self.issuer).expect("a valid request");
        (certificate, key.serialize_pem())
    }
}

fn params(common_name: &str, organizations: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    for organization in organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    params
}
