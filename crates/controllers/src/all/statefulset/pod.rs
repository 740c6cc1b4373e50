//! The members of a StatefulSet: their identity and their claims.

use client::Key;
use machinery::{Map, Object, Value, value};

use super::Set;
use crate::{plan::*, pod_template::pod_from_template, resources::*, revisions::HASH};

impl Set<'_> {
    fn pod_name(&self, ordinal: i64) -> String {
        format!("{}-{ordinal}", self.object.name())
    }

    pub fn create(&self, plan: &mut Plan, ordinal: i64) {
        self.create_claims(plan, ordinal);
        let revision = self.revision_for(ordinal);
        let name = self.pod_name(ordinal);
        let mut pod = pod_from_template(&revision.template, &self.object, &name);
        let labels = [
            ("statefulset.kubernetes.io/pod-name", name.clone()),
            ("apps.kubernetes.io/pod-index", ordinal.to_string()),
            (HASH, revision.name.clone()),
        ];
        for (key, value) in labels {
            pod.set_at(&["metadata", "labels", key], value);
        }
        pod.set_at(&["spec", "hostname"], name.as_str());
        let service = self.object.str_at(&["spec", "serviceName"]);
        if !service.is_empty() {
            pod.set_at(&["spec", "subdomain"], service);
        }
        self.mount_claims(&mut pod, &name);
        let set = self.object.name();
        let done = format!("create Pod {name} in StatefulSet {set} successful");
        let failed = format!("create Pod {name} in StatefulSet {set} failed error: ");
        plan.push(Intent::Create { resource: &PODS, object: pod })
            .note(Note::normal(&self.object, "SuccessfulCreate", done))
            .failure(Note::warning(&self.object, "FailedCreate", failed));
    }

    fn claim_templates(&self) -> &[Value] {
        self.object.list_at(&["spec", "volumeClaimTemplates"])
    }

    /// Volumes of the claims take the place of the template's of the same name.
    fn mount_claims(&self, pod: &mut Object, pod_name: &str) {
        let templates = self.claim_templates();
        if templates.is_empty() {
            return;
        }
        let name_of = |template: &Value| template.at(&["metadata", "name"]).cloned().unwrap_or_default();
        let claimed: Vec<Value> = templates.iter().map(name_of).collect();
        let mut volumes: Vec<Value> = claimed
            .iter()
            .map(|name| {
                let claim = format!("{}-{pod_name}", name.as_str().unwrap_or_default());
                value!({"name": name, "persistentVolumeClaim": {"claimName": claim}})
            })
            .collect();
        let others = pod.list_at(&["spec", "volumes"]).iter();
        volumes.extend(others.filter(|v| v.get("name").is_none_or(|name| !claimed.contains(name))).cloned());
        pod.set_at(&["spec", "volumes"], volumes);
    }

    /// A member's claims are made before it and outlive it.
    pub fn create_claims(&self, plan: &mut Plan, ordinal: i64) {
        let pod_name = self.pod_name(ordinal);
        for template in self.claim_templates() {
            let Some(base) = template.at(&["metadata", "name"]).and_then(Value::as_str) else { continue };
            let name = format!("{base}-{pod_name}");
            let key = Key::new(self.object.namespace(), &name);
            if self.world.get(&PERSISTENT_VOLUME_CLAIMS, &key).is_some() {
                continue;
            }
            let claim = self.claim(template, &name);
            plan.push(Intent::Create { resource: &PERSISTENT_VOLUME_CLAIMS, object: claim });
        }
    }

    fn claim(&self, template: &Value, name: &str) -> Object {
        let mut claim = Object::new("v1", "PersistentVolumeClaim", self.object.namespace(), name);
        let own = template.at(&["metadata", "labels"]).and_then(Value::as_map).cloned();
        let mut labels: Map = own.unwrap_or_default();
        let selected = self.object.map_at(&["spec", "selector", "matchLabels"]).cloned().unwrap_or_default();
        for (key, value) in selected.iter() {
            labels.insert(key.clone(), value.clone());
        }
        claim.metadata_mut().insert("labels", labels);
        if let Some(annotations) = template.at(&["metadata", "annotations"]) {
            claim.metadata_mut().insert("annotations", annotations.clone());
        }
        let policy = self.object.str_at(&["spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted"]);
        if policy == "Delete" {
            let owner = controller_reference(&self.object).to_value();
            claim.metadata_mut().insert("ownerReferences", vec![owner]);
        }
        claim.root_mut().insert("spec", template.get("spec").cloned().unwrap_or_default());
        claim
    }
}
