//! Where the objects of one kind lie, whatever version they are asked for in.

use std::sync::{Arc, Weak};

use api::{GroupVersionKind, Status};
use bytes::Bytes;
use machinery::Object;
use store::Revision;

use crate::{Shared, cache::Entry, codec, strategy::Strategy};

/// One kind's place in the store. All served versions of the kind share it.
pub(crate) struct Storage {
    pub shared: Arc<Shared>,
    pub gvk: GroupVersionKind,
    pub namespaced: bool,
    /// The key prefix, with a slash at the end.
    pub root: String,
    pub strategy: Arc<dyn Strategy>,
}

impl Storage {
    pub fn decode(&self, stored: &[u8], revision: Revision) -> Result<Object, Status> {
        let mut object = codec::decode(&self.gvk, stored, revision)?;
        self.strategy.on_read(&mut object);
        Ok(object)
    }

    pub fn encode(&self, object: &Object) -> Result<Bytes, Status> {
        codec::encode(&self.gvk, object)
    }

    /// Indexes one stored version. `None` when it cannot be read, which is logged: one broken
    /// object must not hide the others.
    pub fn entry(&self, key: Bytes, revision: Revision, stored: Bytes) -> Option<Arc<Entry>> {
        self.read_entry(key, revision, stored).map(|(entry, _)| entry)
    }

    /// As [`Storage::entry`], with the JSON form made while the tree is at hand.
    pub fn entry_with_json(
        &self,
        key: Bytes,
        revision: Revision,
        stored: Bytes,
    ) -> Option<Arc<Entry>> {
        let (entry, object) = self.read_entry(key, revision, stored)?;
        entry.keep_json(codec::json(&object));
        Some(entry)
    }

    fn read_entry(
        &self,
        key: Bytes,
        revision: Revision,
        stored: Bytes,
    ) -> Option<(Arc<Entry>, Object)> {
        match self.decode(&stored, revision) {
            Ok(object) => Some((self.entry_of(key, revision, stored, &object), object)),
            Err(error) => {
                tracing::error!(key = %String::from_utf8_lossy(&key), %error, "a stored object cannot be read");
                None
            }
        }
    }

    pub fn entry_of(
        &self,
        key: Bytes,
        revision: Revision,
        stored: Bytes,
        object: &Object,
    ) -> Arc<Entry> {
        let budget = self.shared.budget.clone();
        let mut entry = Entry::new(key, self.root.len(), self.namespaced, revision, stored, budget);
        let fields = self.strategy.selectable_fields().iter();
        entry.index(object, fields.map(|field| self.strategy.selectable_value(object, field)));
        Arc::new(entry)
    }

    /// The JSON form in the storage version, made once.
    pub fn json(&self, entry: &Arc<Entry>) -> Result<Bytes, Status> {
        if let Some(json) = entry.cached_json() {
            return Ok(json);
        }
        let json = codec::json(&self.decode(&entry.stored, entry.revision)?);
        entry.keep_json(json.clone());
        Ok(json)
    }
}

/// A failure of the store as the client sees it.
pub(crate) fn failed(error: store::Error) -> Status {
    use store::Error;
    match &error {
        Error::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        Error::Future { requested, current } => Status::new(
            504,
            api::Reason::Timeout,
            format!("Timeout: Too large resource version: {requested}, current: {current}"),
        ),
        Error::TooLarge { .. } => Status::new(
            413,
            api::Reason::RequestEntityTooLarge,
            format!("Request entity is too large: {error}"),
        ),
        Error::Unavailable(_) | Error::Locked { .. } => {
            tracing::warn!(error = %stdx::chain(&error), "the store is unavailable");
            Status::new(503, api::Reason::ServiceUnavailable, stdx::chain(&error).to_string())
        }
        Error::Unknown(_) => {
            Status::new(504, api::Reason::Timeout, format!("Timeout: {}", stdx::chain(&error)))
        }
        _ => {
            tracing::error!(error = %stdx::chain(&error), "the store failed");
            Status::internal(stdx::chain(&error))
        }
    }
}

/// The registry as strategies reach it.
pub(crate) type RegistryRef = Weak<crate::Registry>;
