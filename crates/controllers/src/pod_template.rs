//! Pods and names made from templates.

use machinery::{Map, Object, Value};
use stdx::Timestamp;

use crate::{conditions::pruned, plan::controller_reference};

/// The letters of generated names and hashes: no vowels, so that no word comes out.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A generated name's base is cut so that base and suffix fit a label.
const MAX_BASE: usize = 63 - 5;

/// A pod of `owner`'s `template` (`spec.template` of a workload).
pub fn pod_from_template(template: &Value, owner: &Object, name: &str) -> Object {
    let mut pod = Object::new("v1", "Pod", owner.namespace(), name);
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.at(&["metadata", field]) {
            pod.metadata_mut().insert(field, value.clone());
        }
    }
    pod.metadata_mut().insert("ownerReferences", vec![controller_reference(owner).to_value()]);
    pod.root_mut()
        .insert("spec", template.get("spec").cloned().unwrap_or_else(|| Map::new().into()));
    pod
}

/// `BASE-` and five letters that differ between owners, moments and `index`es of one plan: what
/// `generateName` gives, but chosen by the plan, so that a create whose answer was lost can be
/// sent again and makes no second object.
pub fn generated_name(base: &str, owner_uid: &str, now: Timestamp, index: usize) -> String {
    let seed = fnv64(format!("{owner_uid}/{}/{index}", now.as_nanos()).as_bytes());
    let base = format!("{base}-");
    format!("{}{}", &base[..base.len().min(MAX_BASE)], letters(seed, 5))
}

/// A hash of a template, in the alphabet of `pod-template-hash`. A collision count greater than
/// zero gives another one.
pub fn template_hash(template: &Value, collisions: i64) -> String {
    let mut text = machinery::json::to_vec(&pruned(template));
    if collisions > 0 {
        text.extend_from_slice(collisions.to_string().as_bytes());
    }
    let hash = fnv64(&text);
    // Upstream's are the ten digits of a 32-bit number, letter for digit.
    let digits = ((hash ^ (hash >> 32)) as u32).to_string();
    digits.bytes().map(|b| ALPHABET[(b as usize) % ALPHABET.len()] as char).collect()
}

fn letters(mut seed: u64, count: usize) -> String {
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(ALPHABET[(seed % ALPHABET.len() as u64) as usize] as char);
        seed /= ALPHABET.len() as u64;
    }
    text
}

/// FNV-1a with a final mix, stable over releases: names in the store depend on it.
pub fn fnv64(bytes: &[u8]) -> u64 {
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn names_fit_and_differ() {
        let now = Timestamp::from_secs(7);
        let long = "x".repeat(80);
        assert_eq!(generated_name(&long, "u", now, 0).len(), 63);
        let a = generated_name("web", "u", now, 0);
        assert!(a.starts_with("web-") && a.len() == 9, "{a}");
        assert_ne!(a, generated_name("web", "u", now, 1));
    }

    #[test]
    fn a_hash_sees_content_not_empty_fields() {
        let a = template_hash(&value!({"spec": {"x": 1, "y": []}}), 0);
        assert_eq!(a, template_hash(&value!({"spec": {"x": 1}}), 0));
        assert_ne!(a, template_hash(&value!({"spec": {"x": 1}}), 1));
        assert_ne!(a, template_hash(&value!({"spec": {"x": 2}}), 0));
    }
}
