//! Approving and signing certificate requests takes a permission on the signer.

use api::Status;
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use registry::{Attributes, Operation};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Plugin, World, is_resource, refuse};
use crate::authz::{MASTERS, Query};

pub struct Certificates;
pub const PLUGIN: Certificates = Certificates;

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

#[async_trait]
impl Plugin for Certificates {
    async fn validate(&self, world: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !is_resource(attributes, GROUP, "certificatesigningrequests") {
            return Ok(());
        }
        let Some(request) = &attributes.object else { return Ok(()) };
        let old = attributes.old_object.as_ref();
        let signer = old.unwrap_or(request).str_at(&["spec", "signerName"]);
        match (attributes.operation, attributes.subresource) {
            (Operation::Create, "") if signer == CLIENT_SIGNER && asks_for_masters(request) => {
                Err(refuse(
                    attributes,
                    "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed",
                ))
            }
            (Operation::Update, "approval") => permitted(world, attributes, signer, "approve"),
            (Operation::Update, "status") => {
                let certificate = |object: &machinery::Object| {
                    object.str_at(&["status", "certificate"]).to_owned()
                };
                let unchanged = old.is_some_and(|old| certificate(old) == certificate(request));
                if unchanged { Ok(()) } else { permitted(world, attributes, signer, "sign") }
            }
            _ => Ok(()),
        }
    }
}

/// The permission may be given on one signer or on all of its domain.
fn permitted(
    world: &World,
    attributes: &Attributes<'_>,
    signer: &str,
    verb: &str,
) -> Result<(), Status> {
    let domain = signer.split_once('/').map_or("", |(domain, _)| domain);
    let allowed = [signer.to_owned(), format!("{domain}/*")].iter().any(|name| {
        let query = Query {
            is_resource: true,
            verb,
            group: GROUP,
            version: "*",
            resource: "signers",
            name,
            ..Query::default()
        };
        world.authorizer.authorize(&attributes.context.user, &query).allowed()
    });
    let text = format!("user not permitted to {verb} requests with signerName {signer:?}");
    if allowed { Ok(()) } else { Err(refuse(attributes, &text)) }
}

fn asks_for_masters(request: &machinery::Object) -> bool {
    let pem = STANDARD.decode(request.str_at(&["spec", "request"])).unwrap_or_default();
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(&pem) else { return false };
    let Ok((_, parsed)) = X509CertificationRequest::from_der(&block.contents) else { return false };
    let subject = &parsed.certification_request_info.subject;
    subject.iter_organization().any(|o| o.as_str() == Ok(MASTERS))
}
