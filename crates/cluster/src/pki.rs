//! The cluster's own certificate authority and what it signs.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use sha2::{Digest, Sha256};
use stdx::{Env, Timestamp};

use crate::Error;

const DAY_SECS: i64 = 86_400;
const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// Certificates begin a little in the past, for machines whose clocks differ.
const BACKDATE_SECS: i64 = 300;

/// A directory of PEM files: `NAME.crt` and `NAME.key` (mode 0600).
#[derive(Clone, Debug)]
pub struct Pki {
    directory: PathBuf,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// The user that the API server sees.
    pub common_name: &'a str,
    /// The groups that the API server sees.
    pub organizations: &'a [&'a str],
    pub dns_names: &'a [String],
    pub addresses: &'a [IpAddr],
    /// For serving TLS; otherwise for a client.
    pub serving: bool,
}

impl Pki {
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Makes the CA and the service accounts' signing key unless they are there.
    pub fn ensure_authority(&self, env: &Env) -> Result<(), Error> {
        fs::create_dir_all(&self.directory).map_err(|e| Error::io(&self.directory, e))?;
        if !self.path("ca.key").exists() {
            self.create_ca(env)?;
        }
        if !self.path("sa.key").exists() {
            let key = KeyPair::generate()?;
            self.write("sa.pub", &key.public_key_pem())?;
            self.write("sa.key", &key.serialize_pem())?;
        }
        Ok(())
    }

    fn create_ca(&self, env: &Env) -> Result<(), Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        validity(&mut params, env.now(), CA_DAYS);
        let certificate = params.self_signed(&key)?;
        self.write("ca.crt", &certificate.pem())?;
        self.write("ca.key", &key.serialize_pem())
    }

    /// Issues `NAME.crt` and `NAME.key`, replacing what is there.
    pub fn issue(&self, env: &Env, name: &str, subject: &Subject<'_>) -> Result<(), Error> {
        let ca_key = KeyPair::from_pem(&self.read("ca.key")?)?;
        let issuer = Issuer::from_ca_cert_pem(&self.read("ca.crt")?, ca_key)?;
        let key = KeyPair::generate()?;
        let params = subject.params(env)?;
        let certificate = params.signed_by(&key, &issuer)?;
        self.write(&format!("{name}.crt"), &certificate.pem())?;
        self.write(&format!("{name}.key"), &key.serialize_pem())
    }

    /// Issues unless there is one already.
    pub fn ensure(&self, env: &Env, name: &str, subject: &Subject<'_>) -> Result<(), Error> {
        if self.path(&format!("{name}.crt")).exists() && self.path(&format!("{name}.key")).exists()
        {
            return Ok(());
        }
        self.issue(env, name, subject)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    pub fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.path(file);
        fs::read_to_string(&path).map_err(|source| Error::io(&path, source))
    }

    /// What a join token carries: SHA-256 of the CA's public key information, in hex.
    pub fn ca_hash(&self) -> Result<String, Error> {
        ca_hash(self.read("ca.crt")?.as_bytes())
    }

    fn write(&self, file: &str, text: &str) -> Result<(), Error> {
        write_private(&self.path(file), text.as_bytes())
    }
}

impl Subject<'_> {
    fn params(&self, env: &Env) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::new(self.dns_names.to_vec())?;
        params.subject_alt_names.extend(self.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.common_name);
        for organization in self.organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![if self.serving {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        let mut serial = [0; 16];
        env.fill_random(&mut serial);
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        validity(&mut params, env.now(), LEAF_DAYS);
        Ok(params)
    }
}

/// SHA-256 over the SubjectPublicKeyInfo of the first certificate in `pem`, in hex, as kubeadm
/// prints it after `sha256:`.
pub fn ca_hash(pem: &[u8]) -> Result<String, Error> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem)
        .map_err(|_| Error::Invalid { what: "the CA certificate is not PEM".into() })?;
    let certificate = pem
        .parse_x509()
        .map_err(|_| Error::Invalid { what: "the CA certificate is malformed".into() })?;
    let digest = Sha256::digest(certificate.tbs_certificate.subject_pki.raw);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn validity(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let from = now.as_secs() - BACKDATE_SECS;
    params.not_before = at(from);
    params.not_after = at(from + days * DAY_SECS);
}

fn at(secs: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(secs).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| Error::io(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_issued_verifies_against_the_ca() {
        let directory = std::env::temp_dir().join(format!("gantry-pki-{}", Env::real().uuid()));
        let pki = Pki::at(&directory);
        let env = Env::real();
        pki.ensure_authority(&env).unwrap();
        let hash = pki.ca_hash().unwrap();
        pki.ensure_authority(&env).unwrap();
        assert_eq!(pki.ca_hash().unwrap(), hash, "a second call keeps the CA");
        let subject = Subject {
            common_name: "system:node:n1",
            organizations: &["system:nodes"],
            ..Subject::default()
        };
        pki.issue(&env, "node", &subject).unwrap();
        let pem = pki.read("node.crt").unwrap();
        let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = parsed.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=system:node:n1, O=system:nodes");
        let ca_pem = pki.read("ca.crt").unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).unwrap();
        assert_eq!(certificate.issuer(), ca.parse_x509().unwrap().subject());
        fs::remove_dir_all(&directory).unwrap();
    }
}
