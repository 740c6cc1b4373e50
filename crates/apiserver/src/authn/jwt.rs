//! JSON web tokens (RFC 7519) signed with RS256 or ES256, and their public keys as a JWK set.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    rsa,
    signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("no private key in PEM form")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("the private key is neither RSA of 2048 bits or more nor ECDSA P-256")]
    Unsupported,
}

/// A private key that signs tokens, and its public half.
pub struct SigningKey {
    secret: Secret,
    public: PublicKey,
}

enum Secret {
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
}

impl SigningKey {
    /// Reads the first private key of a PEM text (PKCS#8; RSA also PKCS#1).
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(KeyError::Pem)?;
        let random = SystemRandom::new();
        let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let rsa = match &der {
            PrivateKeyDer::Pkcs8(pkcs8) => {
                if let Ok(pair) =
                    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.secret_pkcs8_der(), &random)
                {
                    return Ok(Self::ecdsa(pair));
                }
                RsaKeyPair::from_pkcs8(pkcs8.secret_pkcs8_der())
            }
            PrivateKeyDer::Pkcs1(pkcs1) => RsaKeyPair::from_der(pkcs1.secret_pkcs1_der()),
            _ => return Err(KeyError::Unsupported),
        };
        rsa.map(Self::rsa).map_err(|_| KeyError::Unsupported)
    }

    fn ecdsa(pair: EcdsaKeyPair) -> Self {
        let point = pair.public_key().as_ref().to_vec();
        Self { public: PublicKey::new(Kind::Es256 { point }), secret: Secret::Es256(pair) }
    }

    fn rsa(pair: RsaKeyPair) -> Self {
        let parts: rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
        let kind = Kind::Rs256 { modulus: parts.n, exponent: parts.e };
        Self { public: PublicKey::new(kind), secret: Secret::Rs256(pair) }
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The compact form of a token with these claims.
    pub fn sign(&self, claims: &Json) -> String {
        let header = json!({"alg": self.public.algorithm(), "kid": self.public.id});
        let signed = format!("{}.{}", part(&header), part(claims));
        let random = SystemRandom::new();
        let signature = match &self.secret {
            Secret::Es256(pair) => {
                let signature = pair.sign(&random, signed.as_bytes());
                signature.expect("the kernel's entropy source answers").as_ref().to_vec()
            }
            Secret::Rs256(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)
                    .expect("the buffer has the modulus' length");
                signature
            }
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn part(json: &Json) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

/// A key that verifies tokens.
#[derive(Clone, Debug)]
pub struct PublicKey {
    /// The key's id: the SHA-256 of its DER form, as Kubernetes computes it.
    pub id: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The uncompressed point, 65 bytes.
    Es256 {
        point: Vec<u8>,
    },
    Rs256 {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
}

impl PublicKey {
    fn new(kind: Kind) -> Self {
        Self { id: URL_SAFE_NO_PAD.encode(Sha256::digest(kind.to_der())), kind }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.kind {
            Kind::Es256 { .. } => "ES256",
            Kind::Rs256 { .. } => "RS256",
        }
    }

    /// The key as an entry of a JWK set (RFC 7517).
    pub fn to_jwk(&self) -> Json {
        let common = json!({"use": "sig", "kid": self.id, "alg": self.algorithm()});
        let own = match &self.kind {
            Kind::Es256 { point } => json!({
                "kty": "EC", "crv": "P-256",
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]),
            }),
            Kind::Rs256 { modulus, exponent } => json!({
                "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(modulus), "e": URL_SAFE_NO_PAD.encode(exponent),
            }),
        };
        let fields = [common, own].into_iter().filter_map(|part| match part {
            Json::Object(map) => Some(map),
            _ => None,
        });
        Json::Object(fields.flatten().collect())
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.kind {
            Kind::Es256 { point } => {
                let key =
                    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, signature).is_ok()
            }
            Kind::Rs256 { modulus, exponent } => {
                let key = signature::RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
        }
    }
}

impl Kind {
    /// `SubjectPublicKeyInfo` (RFC 5280).
    fn to_der(&self) -> Vec<u8> {
        let (algorithm, key) = match self {
            Self::Es256 { point } => {
                let oids = [
                    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
                    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
                ];
                (der(0x30, &oids), point.clone())
            }
            Self::Rs256 { modulus, exponent } => {
                let oid =
                    [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
                let numbers = [der_integer(modulus), der_integer(exponent)].concat();
                (der(0x30, &oid), der(0x30, &numbers))
            }
        };
        let bits = der(0x03, &[&[0][..], &key].concat());
        der(0x30, &[algorithm, bits].concat())
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=0x7f => out.push(short as u8),
        long => {
            let bytes: Vec<u8> =
                long.to_be_bytes().into_iter().skip_while(|&byte| byte == 0).collect();
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
    }
    out.extend(content);
    out
}

fn der_integer(magnitude: &[u8]) -> Vec<u8> {
    let sign = magnitude.first().is_some_and(|&byte| byte & 0x80 != 0);
    der(0x02, &[if sign { &[0][..] } else { &[] }, magnitude].concat())
}

/// The claims of a token whose signature one of `keys` verifies; `None` otherwise.
pub fn verify(token: &str, keys: &[PublicKey]) -> Option<Json> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let header: Json = decode(header)?;
    let (algorithm, id) = (header["alg"].as_str()?, header["kid"].as_str().unwrap_or_default());
    let fits = |key: &&PublicKey| key.algorithm() == algorithm && (id.is_empty() || id == key.id);
    let verified = keys.iter().filter(fits).any(|key| key.verifies(signed.as_bytes(), &signature));
    verified.then(|| decode(claims)).flatten()
}

/// The claims of a token as they stand, unverified: only to find out who should verify it.
pub fn claims_unverified(token: &str) -> Option<Json> {
    let mut parts = token.split('.');
    let (_, claims) = (parts.next()?, parts.next()?);
    (parts.next().is_some() && parts.next().is_none()).then(|| decode(claims)).flatten()
}

fn decode(part: &str) -> Option<Json> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        SigningKey::from_pem(pem.as_bytes()).unwrap()
    }

    #[test]
    fn verifies_its_own_tokens_and_no_others() {
        let (ours, other) = (key(), key());
        let token = ours.sign(&json!({"sub": "a"}));
        let keys = [other.public().clone(), ours.public().clone()];
        assert_eq!(verify(&token, &keys).unwrap()["sub"], "a");
        assert_eq!(verify(&token, &keys[..1]), None);
        assert_eq!(claims_unverified(&token).unwrap()["sub"], "a");
    }

    #[test]
    fn a_changed_claim_does_not_verify() {
        let ours = key();
        let token = ours.sign(&json!({"sub": "a"}));
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = part(&json!({"sub": "admin"}));
        parts[1] = &forged;
        assert_eq!(verify(&parts.join("."), &[ours.public().clone()]), None);
        let none = format!("{}.{forged}.", part(&json!({"alg": "none"})));
        assert_eq!(verify(&none, &[ours.public().clone()]), None);
    }

    #[test]
    fn the_key_set_names_the_curve_and_the_point() {
        let jwk = key().public().to_jwk();
        assert_eq!(
            (&jwk["kty"], &jwk["crv"], &jwk["use"]),
            (&json!("EC"), &json!("P-256"), &json!("sig"))
        );
        assert_eq!(URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap().len(), 32);
    }
}
