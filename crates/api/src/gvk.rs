//! Names of API groups, versions, kinds and resources.

use std::fmt;

use smol_str::SmolStr;

/// `apps/v1`; the core group is empty and prints as `v1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersion {
    pub group: SmolStr,
    pub version: SmolStr,
}

impl GroupVersion {
    pub fn new(group: impl Into<SmolStr>, version: impl Into<SmolStr>) -> Self {
        Self { group: group.into(), version: version.into() }
    }

    /// Parses an `apiVersion`. `None` when it has more than one slash or no version.
    pub fn parse(api_version: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let valid = !version.is_empty() && !version.contains('/');
        valid.then(|| Self::new(group, version))
    }

    pub fn kind(&self, kind: impl Into<SmolStr>) -> GroupVersionKind {
        GroupVersionKind {
            group: self.group.clone(),
            version: self.version.clone(),
            kind: kind.into(),
        }
    }

    /// The URL prefix: `/api/v1` or `/apis/GROUP/VERSION`.
    pub fn path(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.version)
        } else {
            write!(f, "{}/{}", self.group, self.version)
        }
    }
}

/// `apps/v1, Kind=Deployment`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersionKind {
    pub group: SmolStr,
    pub version: SmolStr,
    pub kind: SmolStr,
}

impl GroupVersionKind {
    pub fn new(
        group: impl Into<SmolStr>,
        version: impl Into<SmolStr>,
        kind: impl Into<SmolStr>,
    ) -> Self {
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    pub fn api_version(&self) -> String {
        self.group_version().to_string()
    }
}

impl fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Kind={}", self.group_version(), self.kind)
    }
}

/// `apps/v1, Resource=deployments`; `resource` is the plural in the URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersionResource {
    pub group: SmolStr,
    pub version: SmolStr,
    pub resource: SmolStr,
}

impl GroupVersionResource {
    /// Usable in constants: `const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods")`.
    pub const fn fixed(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Self {
            group: SmolStr::new_static(group),
            version: SmolStr::new_static(version),
            resource: SmolStr::new_static(resource),
        }
    }

    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    /// `deployments.apps`, or `pods` in the core group: how messages name a resource.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_string()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

impl fmt::Display for GroupVersionResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Resource={}", self.group_version(), self.resource)
    }
}
