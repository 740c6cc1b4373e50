//! Objects that every cluster has: roles and bindings are written here, at each start.

use std::sync::{Arc, atomic::Ordering};

use registry::{AdmitAll, CreateOptions, GetOptions, RequestContext, UpdateOptions};

use crate::{Server, authz::bootstrap, config::Error};

impl Server {
    /// Writes the default roles and bindings that are missing. Done again at each start, so that
    /// what an administrator deleted by mistake comes back.
    pub async fn bootstrap(self: &Arc<Self>) -> Result<(), Error> {
        for desired in bootstrap::desired() {
            let what = format!("{} {}", desired.kind(), desired.name());
            self.reconcile_role(desired).await.map_err(|source| Error::Bootstrap { what, source })?;
        }
        self.health.bootstrapped.store(true, Ordering::Release);
        Ok(())
    }

    async fn reconcile_role(&self, desired: machinery::Object) -> Result<(), api::Status> {
        let resource =
            self.data.resource("rbac.authorization.k8s.io", "v1", bootstrap::resource_of(desired.kind()))?;
        let (namespace, name) = (desired.namespace().to_owned(), desired.name().to_owned());
        let existing = match resource.get(&namespace, &name, &GetOptions::default()).await {
            Ok(item) => Some(item.object()?),
            Err(status) if status.is_not_found() => None,
            Err(status) => return Err(status),
        };
        let context = RequestContext::internal(self.env.now());
        let Some(write) = bootstrap::reconcile(&desired, existing.as_ref()) else { return Ok(()) };
        if existing.is_none() {
            let created = resource.create(&context, &namespace, write, &CreateOptions::default(), &AdmitAll).await;
            return match created {
                Err(status) if !status.is_already_exists() => Err(status),
                _ => Ok(()),
            };
        }
        let change = move |current: Option<&machinery::Object>| {
            Ok(bootstrap::reconcile(&desired, current).unwrap_or_else(|| current.cloned().unwrap_or_default()))
        };
        resource
            .update(&context, &namespace, &name, "", &change, &UpdateOptions::default(), &AdmitAll)
            .await
            .map(|_| ())
    }
}
