//! Writes the objects that every cluster has, at each start of a server.

use std::sync::{Arc, atomic::Ordering};

use api::Status;
use machinery::Object;
use registry::{AdmitAll, CreateOptions, GetOptions, RequestContext, UpdateOptions};

use crate::{
    Server,
    authz::bootstrap,
    cluster_objects::{self, Facts},
    config::Error,
};

/// Makes the object to write from the one that exists; `None` when nothing is to be written.
type Plan<'a> = &'a (dyn Fn(Option<&Object>) -> Option<Object> + Send + Sync);

impl Server {
    /// Writes system namespaces, priority classes, the `kubernetes` Service, and the default
    /// roles and bindings, where they are missing. Done again at each start, so that what an
    /// administrator deleted by mistake comes back.
    pub async fn bootstrap(self: &Arc<Self>) -> Result<(), Error> {
        let options = self.data.registry().options();
        let facts = Facts {
            client_ca_pem: &self.config.client_ca_pem,
            service_cidrs: &options.service_cidrs,
            advertise: self.config.advertise,
            one_of_many: self.config.one_of_many,
        };
        for desired in cluster_objects::desired(&facts) {
            let plan = |existing: Option<&Object>| match (existing, desired.update) {
                (None, _) => Some(desired.object.clone()),
                (Some(_), None) => None,
                (Some(old), Some(update)) => {
                    Some(update(old, &desired.object)).filter(|new| new != old)
                }
            };
            self.write(desired.group, desired.resource, &desired.object, &plan).await?;
        }
        for desired in bootstrap::desired() {
            let resource = bootstrap::resource_of(desired.kind());
            let plan = |existing: Option<&Object>| bootstrap::reconcile(&desired, existing);
            self.write("rbac.authorization.k8s.io", resource, &desired, &plan).await?;
        }
        self.health.bootstrapped.store(true, Ordering::Release);
        Ok(())
    }

    async fn write(
        &self,
        group: &str,
        resource: &str,
        desired: &Object,
        plan: Plan<'_>,
    ) -> Result<(), Error> {
        let written = self.reconcile(group, resource, desired, plan).await;
        let what = format!("{} {}", desired.kind(), desired.name());
        written.map_err(|source| Error::Bootstrap { what, source })
    }

    async fn reconcile(
        &self,
        group: &str,
        resource: &str,
        desired: &Object,
        plan: Plan<'_>,
    ) -> Result<(), Status> {
        let resource = self.data.resource(group, "v1", resource)?;
        let (namespace, name) = (desired.namespace(), desired.name());
        let existing = match resource.get(namespace, name, &GetOptions::default()).await {
            Ok(item) => Some(item.object()?),
            Err(status) if status.is_not_found() => None,
            Err(status) => return Err(status),
        };
        let context = RequestContext::internal(self.env.now());
        let Some(write) = plan(existing.as_ref()) else { return Ok(()) };
        if existing.is_none() {
            let created = resource
                .create(&context, namespace, write, &CreateOptions::default(), &AdmitAll)
                .await;
            return match created {
                Err(status) if !status.is_already_exists() => Err(status),
                _ => Ok(()),
            };
        }
        let change = |current: Option<&Object>| {
            Ok(plan(current).unwrap_or_else(|| current.cloned().unwrap_or_default()))
        };
        let options = UpdateOptions::default();
        resource
            .update(&context, namespace, name, "", &change, &options, &AdmitAll)
            .await
            .map(|_| ())
    }
}
