//! Certificate requests: reading them, the rules of Kubernetes' signers, and signing.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use machinery::{Object, Value};
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use stdx::Timestamp;

use crate::{config::SigningKeyPair, pod_template::fnv64};

pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const API_SERVER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// Clocks differ: certificates begin to be valid a little before now.
const BACKDATE: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(600);

/// Why a request cannot be signed, or not by this signer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the request cannot be read")]
    Unreadable(#[source] rcgen::Error),
    #[error("the signing certificate or key cannot be used")]
    Issuer(#[source] rcgen::Error),
    #[error("the signing certificate cannot be read")]
    IssuerCertificate,
    /// A rule of the signer, in words that go into the request's status.
    #[error("{0}")]
    Rule(String),
}

/// A `CertificateSigningRequest`, decoded.
pub struct Request {
    pub params: CertificateSigningRequestParams,
    pub usages: Vec<String>,
    pub signer: String,
    pub expiration: Option<Duration>,
}

impl Request {
    pub fn read(object: &Object) -> Result<Self, Refusal> {
        let unreadable = || Refusal::Unreadable(rcgen::Error::CouldNotParseCertificationRequest);
        let encoded = object.str_at(&["spec", "request"]);
        let pem = STANDARD.decode(encoded).ok().and_then(|pem| String::from_utf8(pem).ok());
        let params = CertificateSigningRequestParams::from_pem(&pem.ok_or_else(unreadable)?)
            .map_err(Refusal::Unreadable)?;
        let usages = object.list_at(&["spec", "usages"]).iter();
        let seconds = object.i64_at(&["spec", "expirationSeconds"]);
        Ok(Self {
            params,
            usages: usages.filter_map(|usage| usage.as_str().map(str::to_owned)).collect(),
            signer: object.str_at(&["spec", "signerName"]).to_owned(),
            expiration: seconds.map(|seconds| Duration::from_secs(seconds.max(0) as u64)),
        })
    }

    pub fn common_name(&self) -> &str {
        self.name_part(&DnType::CommonName)
    }

    fn name_part(&self, kind: &DnType) -> &str {
        match self.params.params.distinguished_name.get(kind) {
            Some(DnValue::Utf8String(text)) => text,
            Some(DnValue::PrintableString(text)) => text.as_str(),
            Some(DnValue::Ia5String(text)) => text.as_str(),
            _ => "",
        }
    }

    /// The rules of the signer named in the request.
    pub fn validate(&self) -> Result<(), Refusal> {
        match self.signer.as_str() {
            KUBELET_CLIENT => self.validate_kubelet_client(),
            KUBELET_SERVING => self.validate_kubelet_serving(),
            API_SERVER_CLIENT => self.validate_client_usages(),
            _ => Ok(()),
        }
    }

    pub fn validate_kubelet_client(&self) -> Result<(), Refusal> {
        self.require_node_organization()?;
        if let Some(name) = self.params.params.subject_alt_names.first() {
            return rule(match name {
                SanType::DnsName(_) => "DNS subjectAltNames are not allowed",
                SanType::Rfc822Name(_) => "Email subjectAltNames are not allowed",
                SanType::IpAddress(_) => "IP subjectAltNames are not allowed",
                _ => "URI subjectAltNames are not allowed",
            });
        }
        self.require_node_name()?;
        self.require_usages("client auth")
    }

    fn validate_kubelet_serving(&self) -> Result<(), Refusal> {
        self.require_node_organization()?;
        let names = &self.params.params.subject_alt_names;
        if !names.iter().any(|n| matches!(n, SanType::DnsName(_) | SanType::IpAddress(_))) {
            return rule("DNS or IP subjectAltName is required");
        }
        if names.iter().any(|n| matches!(n, SanType::Rfc822Name(_))) {
            return rule("Email subjectAltNames are not allowed");
        }
        if !names.iter().all(|n| matches!(n, SanType::DnsName(_) | SanType::IpAddress(_))) {
            return rule("URI subjectAltNames are not allowed");
        }
        self.require_usages("server auth")?;
        self.require_node_name()
    }

    fn validate_client_usages(&self) -> Result<(), Refusal> {
        let known = ["digital signature", "key encipherment", "client auth"];
        if let Some(other) = self.usages.iter().find(|usage| !known.contains(&usage.as_str())) {
            return rule(format!("invalid usage for client certificate: {other}"));
        }
        if !self.usages.iter().any(|usage| usage == "client auth") {
            return rule("missing required usage for client certificate: client auth");
        }
        Ok(())
    }

    fn require_node_organization(&self) -> Result<(), Refusal> {
        if self.name_part(&DnType::OrganizationName) == "system:nodes" {
            return Ok(());
        }
        rule("subject organization is not system:nodes")
    }

    fn require_node_name(&self) -> Result<(), Refusal> {
        if self.common_name().starts_with("system:node:") {
            return Ok(());
        }
        rule("subject common name does not begin with system:node:")
    }

    /// `digital signature` and the given one; `key encipherment` only with RSA keys, so optional.
    fn require_usages(&self, auth: &str) -> Result<(), Refusal> {
        let mut usages: Vec<&str> = self.usages.iter().map(String::as_str).collect();
        usages.retain(|usage| *usage != "key encipherment");
        usages.sort_unstable();
        let mut wanted = [auth, "digital signature"];
        wanted.sort_unstable();
        if usages == wanted {
            return Ok(());
        }
        rule(format!("usages did not match [{auth} digital signature key encipherment]"))
    }

    /// Signs, and returns the certificate in PEM. `identity` makes the serial number unique.
    pub fn sign(
        mut self,
        signing: &SigningKeyPair,
        longest: Duration,
        identity: &str,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        let key = KeyPair::from_pem(&signing.key).map_err(Refusal::Issuer)?;
        let issuer =
            Issuer::from_ca_cert_pem(&signing.certificate, key).map_err(Refusal::Issuer)?;
        let duration =
            self.expiration.map_or(longest, |asked| asked.clamp(SHORTEST, longest.max(SHORTEST)));
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |time: Timestamp| epoch + Duration::from_secs(time.as_secs().max(0) as u64);
        let end = (now + duration).min(issuer_end(&signing.certificate)?);
        let params = &mut self.params.params;
        params.not_before = at(now - BACKDATE);
        params.not_after = at(end);
        // A request may ask for anything, a CA's rights among it; the usages alone decide.
        params.is_ca = IsCa::NoCa;
        params.name_constraints = None;
        params.custom_extensions = Vec::new();
        params.key_usages = self.usages.iter().filter_map(|usage| key_usage(usage)).collect();
        params.extended_key_usages =
            self.usages.iter().filter_map(|usage| extended_usage(usage)).collect();
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial(identity, now));
        Ok(self.params.signed_by(&issuer).map_err(Refusal::Issuer)?.pem())
    }
}

fn rule(text: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal::Rule(text.into()))
}

fn issuer_end(pem: &str) -> Result<Timestamp, Refusal> {
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| Refusal::IssuerCertificate)?;
    let certificate = pem.parse_x509().map_err(|_| Refusal::IssuerCertificate)?;
    Ok(Timestamp::from_secs(certificate.validity().not_after.timestamp()))
}

fn serial(identity: &str, now: Timestamp) -> SerialNumber {
    let half =
        |salt: &str| fnv64(format!("{salt}{identity}{}", now.as_nanos()).as_bytes()).to_be_bytes();
    let mut bytes = [half("a"), half("b")].concat();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

fn key_usage(usage: &str) -> Option<KeyUsagePurpose> {
    Some(match usage {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        "cert sign" => KeyUsagePurpose::KeyCertSign,
        "crl sign" => KeyUsagePurpose::CrlSign,
        "encipher only" => KeyUsagePurpose::EncipherOnly,
        "decipher only" => KeyUsagePurpose::DecipherOnly,
        _ => return None,
    })
}

fn extended_usage(usage: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match usage {
        "any" => ExtendedKeyUsagePurpose::Any,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "code signing" => ExtendedKeyUsagePurpose::CodeSigning,
        "email protection" | "s/mime" => ExtendedKeyUsagePurpose::EmailProtection,
        "timestamping" => ExtendedKeyUsagePurpose::TimeStamping,
        "ocsp signing" => ExtendedKeyUsagePurpose::OcspSigning,
        _ => return None,
    })
}

/// Whether a request's status has a true condition of this type.
pub fn has(object: &Object, kind: &str) -> bool {
    let is_it = |c: &Value| c.get("type").and_then(Value::as_str) == Some(kind);
    object.list_at(&["status", "conditions"]).iter().any(is_it)
}

pub fn encode(pem: &str) -> String {
    STANDARD.encode(pem)
}
