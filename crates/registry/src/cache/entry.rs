//! One stored object: its bytes and the little that selectors need.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use machinery::{Object, Value};
use smol_str::SmolStr;
use store::Revision;

/// One version of one object. The tree is not kept: it is decoded when it is asked for.
pub struct Entry {
    pub key: Bytes,
    /// Where the name begins in `key`; the namespace lies between `namespace_at` and it.
    name_at: usize,
    namespace_at: usize,
    /// The `resourceVersion` that this version is served with.
    pub revision: Revision,
    /// The bytes in the store.
    pub stored: Bytes,
    labels: Box<[(SmolStr, SmolStr)]>,
    /// Values of the strategy's selectable fields, in their order.
    fields: Box<[SmolStr]>,
    json: Mutex<Option<Bytes>>,
    budget: Arc<Budget>,
}

impl Entry {
    pub(crate) fn new(
        key: Bytes,
        root_len: usize,
        namespaced: bool,
        revision: Revision,
        stored: Bytes,
        budget: Arc<Budget>,
    ) -> Self {
        let slash = key[root_len.min(key.len())..].iter().position(|&b| b == b'/');
        let name_at = match slash {
            Some(at) if namespaced => root_len + at + 1,
            _ => root_len,
        };
        let (labels, fields) = Default::default();
        let json = Mutex::default();
        Self {
            key,
            name_at,
            namespace_at: root_len,
            revision,
            stored,
            labels,
            fields,
            json,
            budget,
        }
    }

    pub(crate) fn index(&mut self, object: &Object, fields: impl Iterator<Item = SmolStr>) {
        let labels = object.labels().into_iter().flat_map(|map| map.iter());
        self.labels = labels
            .filter_map(|(key, value)| match value {
                Value::String(text) => Some((key.clone(), text.clone())),
                _ => None,
            })
            .collect();
        self.fields = fields.collect();
    }

    /// The same object under another revision: the last state of one that was deleted.
    pub(crate) fn at_revision(&self, revision: Revision) -> Self {
        Self {
            key: self.key.clone(),
            name_at: self.name_at,
            namespace_at: self.namespace_at,
            revision,
            stored: self.stored.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            json: Mutex::default(),
            budget: self.budget.clone(),
        }
    }

    pub fn name(&self) -> &str {
        std::str::from_utf8(&self.key[self.name_at..]).unwrap_or_default()
    }

    /// Empty for a kind without namespaces.
    pub fn namespace(&self) -> &str {
        let end = self.name_at.saturating_sub(1).max(self.namespace_at);
        std::str::from_utf8(&self.key[self.namespace_at..end]).unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok()?;
        Some(self.labels[at].1.as_str())
    }

    pub fn field(&self, index: usize) -> &str {
        self.fields.get(index).map_or("", SmolStr::as_str)
    }

    pub(crate) fn cached_json(&self) -> Option<Bytes> {
        self.json.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the JSON form until the budget needs the room.
    pub(crate) fn keep_json(self: &Arc<Self>, json: Bytes) {
        let size = json.len();
        let before = self.json.lock().unwrap_or_else(PoisonError::into_inner).replace(json);
        if let Some(old) = before {
            self.budget.used.fetch_sub(old.len(), Ordering::Relaxed);
        }
        self.budget.add(self, size);
    }

    fn drop_json(&self) -> usize {
        self.json.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(0, |json| json.len())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let freed = self.drop_json();
        self.budget.used.fetch_sub(freed, Ordering::Relaxed);
    }
}

/// How many bytes of encoded forms all entries together may keep; the oldest go first.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: usize,
    used: AtomicUsize,
    queue: Mutex<VecDeque<Weak<Entry>>>,
}

impl Budget {
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self { limit_bytes, used: AtomicUsize::new(0), queue: Mutex::default() })
    }

    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn add(&self, entry: &Arc<Entry>, size: usize) {
        self.used.fetch_add(size, Ordering::Relaxed);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(Arc::downgrade(entry));
        while self.used.load(Ordering::Relaxed) > self.limit_bytes {
            let Some(oldest) = queue.pop_front() else { break };
            if let Some(oldest) = oldest.upgrade() {
                self.used.fetch_sub(oldest.drop_json(), Ordering::Relaxed);
            }
        }
        // Entries that died leave their weak references behind; those at the front go now.
        while queue.front().is_some_and(|weak| weak.strong_count() == 0) {
            queue.pop_front();
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", String::from_utf8_lossy(&self.key), self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, namespaced: bool, budget: &Arc<Budget>) -> Arc<Entry> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        Arc::new(Entry::new(
            key,
            "/registry/pods/".len(),
            namespaced,
            5,
            Bytes::new(),
            budget.clone(),
        ))
    }

    #[test]
    fn splits_the_key() {
        let budget = Budget::new(100);
        let pod = entry("/registry/pods/kube-system/dns", true, &budget);
        assert_eq!((pod.namespace(), pod.name()), ("kube-system", "dns"));
        let node = entry("/registry/pods/node-1", false, &budget);
        assert_eq!((node.namespace(), node.name()), ("", "node-1"));
    }

    #[test]
    fn the_oldest_forms_go_when_the_budget_is_spent() {
        let budget = Budget::new(100);
        let entries: Vec<_> =
            (0..3).map(|i| entry(&format!("/registry/pods/{i}"), false, &budget)).collect();
        for entry in &entries {
            entry.keep_json(Bytes::from(vec![b'x'; 40]));
        }
        let kept: Vec<bool> = entries.iter().map(|e| e.cached_json().is_some()).collect();
        assert_eq!(kept, [false, true, true]);
        drop(entries);
        assert_eq!(budget.used_bytes(), 0);
    }
}
