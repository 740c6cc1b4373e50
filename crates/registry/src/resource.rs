//! A served resource: what handlers talk to.

use std::{collections::BTreeMap, sync::Arc};

use api::{GroupVersionKind, GroupVersionResource, Status};
use bytes::Bytes;
use machinery::{Object, Value};
use store::Revision;

use crate::{
    Registry, Shared,
    cache::{
        Cache, Entry,
        list::{self, ListResult},
        watch::{self, WatchStream},
    },
    codec, generic,
    info::ResourceInfo,
    kinds,
    request::{
        Admission, CreateOptions, DeleteOptions, Deleted, GetOptions, ListOptions, RequestContext,
        UpdateFn, UpdateOptions,
    },
    storage::{self, Storage},
    strategy::Strategy,
    table::{self, Column, DEFAULT_COLUMNS, IncludeObject, TableContext},
};

/// One resource in one version. All versions of a kind share storage and cache.
pub struct Resource {
    info: ResourceInfo,
    pub(crate) storage: Arc<Storage>,
    cache: Arc<Cache>,
}

/// One object as read: its bytes, decoded when asked for.
#[derive(Clone)]
pub struct Item {
    resource: Arc<Resource>,
    pub entry: Arc<Entry>,
}

impl Item {
    pub fn object(&self) -> Result<Object, Status> {
        self.resource.object_of(&self.entry)
    }

    /// The object as JSON, made once per stored version.
    pub fn json(&self) -> Result<Bytes, Status> {
        self.resource.json_of(&self.entry)
    }

    pub fn revision(&self) -> Revision {
        self.entry.revision
    }
}

impl Resource {
    pub fn info(&self) -> &ResourceInfo {
        &self.info
    }

    pub fn strategy(&self) -> &Arc<dyn Strategy> {
        &self.storage.strategy
    }

    /// The registry that this resource belongs to; `None` while it shuts down.
    pub fn registry(&self) -> Option<Arc<Registry>> {
        self.storage.shared.registry.get()?.upgrade()
    }

    /// The columns of `kubectl get`.
    pub fn columns(&self) -> &'static [Column] {
        match self.storage.strategy.columns() {
            [] => &DEFAULT_COLUMNS,
            own => own,
        }
    }

    /// The table row of an object in this handle's version.
    pub fn row(&self, object: &Object, cx: &TableContext, include: IncludeObject) -> Value {
        if !self.info.converts() {
            return table::row(self.columns(), object, cx, include);
        }
        // Cells read the stored shape; what is included stays as it was asked for.
        let mut stored = object.clone();
        self.to_stored(&mut stored);
        let mut row = table::row(self.columns(), object, cx, include);
        if let Some(map) = row.as_map_mut() {
            map.insert("cells", table::cells(self.columns(), &stored, cx));
        }
        row
    }

    /// Fills in defaults, in the version of this handle.
    pub fn default(&self, object: &mut Object) {
        generic::default(self, object);
    }

    pub async fn get(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        options: &GetOptions,
    ) -> Result<Item, Status> {
        self.storage.shared.metrics.gets.add();
        let key = self.info.key(namespace, name);
        if !options.resource_version.is_empty() {
            self.cache.at_least(list::parse_revision(&options.resource_version)?).await?;
            let entry = self.cache.peek(key.as_bytes()).ok_or_else(|| self.info.not_found(name))?;
            return Ok(Item { resource: self.clone(), entry });
        }
        let read = self.storage.shared.store.range(store::Range::key(key.clone())).await;
        let found =
            read.map_err(storage::failed)?.items.pop().ok_or_else(|| self.info.not_found(name))?;
        let cached =
            self.cache.peek(key.as_bytes()).filter(|entry| entry.revision == found.mod_revision);
        let entry = match cached {
            Some(entry) => entry,
            None => {
                let object = self.storage.decode(&found.value, found.mod_revision)?;
                self.storage.entry_of(found.key, found.mod_revision, found.value, &object)
            }
        };
        Ok(Item { resource: self.clone(), entry })
    }

    /// `namespace` `None` (or empty) reads all namespaces.
    pub async fn list(
        self: &Arc<Self>,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ListResult, Status> {
        self.storage.shared.metrics.lists.add();
        list::list(self, &self.cache, namespace, options).await
    }

    /// An error with code 410 is to be sent as an `ERROR` event of a successful answer.
    pub async fn watch(
        self: &Arc<Self>,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<WatchStream, Status> {
        self.storage.shared.metrics.watches.add();
        watch::watch(self, &self.cache, namespace, options).await
    }

    pub async fn create(
        self: &Arc<Self>,
        cx: &RequestContext,
        namespace: &str,
        object: Object,
        options: &CreateOptions,
        admission: &dyn Admission,
    ) -> Result<Object, Status> {
        self.storage.shared.metrics.creates.add();
        generic::create::create(self, cx, namespace, object, options, admission).await
    }

    /// The new object, and whether it was created. `subresource` is empty for the object
    /// itself; else `status` or another that the kind's strategy knows.
    #[allow(clippy::too_many_arguments)]
    pub async fn update(
        self: &Arc<Self>,
        cx: &RequestContext,
        namespace: &str,
        name: &str,
        subresource: &str,
        update: &dyn UpdateFn,
        options: &UpdateOptions,
        admission: &dyn Admission,
    ) -> Result<(Object, bool), Status> {
        self.storage.shared.metrics.updates.add();
        let target = generic::Target { resource: self, cx, namespace, name, subresource };
        generic::update::update(&target, update, options, admission).await
    }

    pub async fn delete(
        self: &Arc<Self>,
        cx: &RequestContext,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        admission: &dyn Admission,
    ) -> Result<Deleted, Status> {
        self.storage.shared.metrics.deletes.add();
        let target = generic::Target { resource: self, cx, namespace, name, subresource: "" };
        generic::delete::delete(&target, options, admission).await
    }

    /// Deletes what the list options select and gives back what was selected.
    pub async fn delete_collection(
        self: &Arc<Self>,
        cx: &RequestContext,
        namespace: Option<&str>,
        options: &DeleteOptions,
        list: &ListOptions,
        admission: &dyn Admission,
    ) -> Result<ListResult, Status> {
        generic::delete::delete_collection(self, cx, namespace, options, list, admission).await
    }

    /// The object of an entry in this handle's version.
    pub fn object_of(&self, entry: &Entry) -> Result<Object, Status> {
        let mut object = self.storage.decode(&entry.stored, entry.revision)?;
        self.to_served(&mut object);
        Ok(object)
    }

    /// The JSON of an entry in this handle's version; the stored version's is kept.
    pub fn json_of(&self, entry: &Arc<Entry>) -> Result<Bytes, Status> {
        if self.info.converts() {
            return Ok(codec::json(&self.object_of(entry)?));
        }
        self.storage.json(entry)
    }

    /// A list item: for built-in kinds without the leading `{`, `kind` and `apiVersion`.
    pub(crate) fn item_json(&self, entry: &Arc<Entry>) -> Result<Bytes, Status> {
        let json = self.json_of(entry)?;
        Ok(if self.info.custom { json } else { json.slice(codec::head_len(&self.info.gvk)..) })
    }

    pub(crate) fn to_served(&self, object: &mut Object) {
        if self.info.converts() {
            self.storage.strategy.to_version(object, &self.info.gvk.api_version());
            object.set_gvk(&self.info.gvk);
        }
    }

    pub(crate) fn to_stored(&self, object: &mut Object) {
        if self.info.converts() {
            self.storage.strategy.from_version(object, &self.info.gvk.api_version());
        }
        object.set_gvk(&self.storage.gvk);
    }

    /// Upstream's bookmarks are whole objects of their kind, so empty structs show.
    pub(crate) fn bookmark_zero_values(&self, object: &mut Object) {
        let Some(ty) = api::schema().type_of_kind(&self.info.gvk) else { return };
        for field in &ty.fields {
            let is_struct = matches!(field.ty, api::schema::FieldType::Ref(_));
            if is_struct && !field.pointer && field.name != "metadata" {
                object.root_mut().insert(field.name, Value::Map(Default::default()));
            }
        }
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resource({})", self.info.gvr)
    }
}

/// One storage and cache for all versions given, which must agree on where they are stored.
pub(crate) fn open(
    shared: &Arc<Shared>,
    versions: Vec<ResourceInfo>,
    strategy: Arc<dyn Strategy>,
) -> BTreeMap<GroupVersionResource, Arc<Resource>> {
    let Some(first) = versions.first() else { return BTreeMap::new() };
    let storage = Arc::new(Storage {
        shared: shared.clone(),
        gvk: first.storage.clone(),
        namespaced: first.namespaced,
        root: first.root_key(),
        strategy,
    });
    let cache = Cache::new(storage.clone());
    let handle = |info: ResourceInfo| {
        let gvr = info.gvr.clone();
        (gvr, Arc::new(Resource { info, storage: storage.clone(), cache: cache.clone() }))
    };
    versions.into_iter().map(handle).collect()
}

/// Every stored resource that the schema serves, versions of one kind together.
pub(crate) fn open_builtin(shared: &Arc<Shared>) -> BTreeMap<GroupVersionResource, Arc<Resource>> {
    let mut by_prefix: BTreeMap<&str, Vec<ResourceInfo>> = BTreeMap::new();
    for resource in api::schema().served().filter(|r| !r.storage_prefix.is_empty()) {
        by_prefix.entry(resource.storage_prefix).or_default().push(info(resource));
    }
    let mut all = BTreeMap::new();
    for versions in by_prefix.into_values() {
        let strategy = kinds::strategy(&versions[0].storage.group, &versions[0].gvr.resource);
        all.extend(open(shared, versions, strategy));
    }
    all
}

fn info(resource: &api::schema::Resource) -> ResourceInfo {
    let texts = |list: &[&'static str]| list.iter().map(|text| (*text).into()).collect();
    let version = &resource.storage_version;
    ResourceInfo {
        gvr: resource.gvr.clone(),
        gvk: resource.gvk.clone(),
        list_kind: resource.list_kind.into(),
        singular: resource.singular.into(),
        short_names: texts(&resource.short_names),
        categories: texts(&resource.categories),
        namespaced: resource.namespaced,
        verbs: texts(&resource.verbs),
        subresources: resource.subresources.iter().map(|sub| sub.name.into()).collect(),
        storage: GroupVersionKind {
            group: version.group.clone(),
            version: version.version.clone(),
            kind: resource.gvk.kind.clone(),
        },
        prefix: resource.storage_prefix.into(),
        custom: false,
    }
}
