//! What the node remembers of each sandbox's network: one small file per sandbox.
//!
//! A record is written before the first device is made and removed after the last is gone, so
//! whatever a crash leaves behind is named in one. Files are replaced by rename; they need not
//! survive a power cut, which no sandbox survives either.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use stdx::{chain, files::FileSystem};

use crate::{Error, pod::PortMapping};

/// The network of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub sandbox: String,
    pub addresses: Vec<IpAddr>,
    /// The node's end of the pair, for the built-in network.
    #[serde(default)]
    pub device: Option<String>,
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// What the CNI plugins were told and answered, for their DEL.
    #[serde(default)]
    pub cni: Option<CniRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniRecord {
    pub config: serde_json::Value,
    pub result: serde_json::Value,
    pub arguments: String,
    pub netns: PathBuf,
}

/// The directory with the records.
#[derive(Clone)]
pub struct Store {
    files: Arc<dyn FileSystem>,
    directory: PathBuf,
}

impl Store {
    pub fn open(files: Arc<dyn FileSystem>, directory: &Path) -> Result<Self, Error> {
        files
            .create_dir_all(directory)
            .map_err(Error::io(format!("cannot create {}", directory.display())))?;
        Ok(Self { files, directory: directory.to_owned() })
    }

    /// All records. A half-written or damaged one is dropped with a warning: its sandbox was
    /// never reported as up.
    pub fn load(&self) -> Result<Vec<Record>, Error> {
        let names = self.files.list(&self.directory).map_err(self.failed("list"))?;
        let mut records = Vec::new();
        for name in names {
            let path = self.directory.join(&name);
            if path.extension().is_none_or(|extension| extension != "json") {
                let _ = self.files.remove(&path);
                continue;
            }
            match self.read(&path) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = %chain(&error), "dropped");
                    let _ = self.files.remove(&path);
                }
            }
        }
        Ok(records)
    }

    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.sandbox);
        let temporary = path.with_extension("new");
        let bytes = serde_json::to_vec(record)
            .map_err(|source| Error::State { path: path.display().to_string(), source })?;
        let write = || -> io::Result<()> {
            let file = self.files.open(&temporary, true)?;
            file.set_len(0)?;
            file.write_at(0, &bytes)?;
            self.files.rename(&temporary, &path)
        };
        write().map_err(self.failed("write"))
    }

    pub fn remove(&self, sandbox: &str) -> Result<(), Error> {
        match self.files.remove(&self.path(sandbox)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove")(error))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, path: &Path) -> Result<Record, Error> {
        let file = self.files.open(path, false).map_err(self.failed("open"))?;
        let length = file.len().map_err(self.failed("read"))?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_at(0, &mut bytes).map_err(self.failed("read"))?;
        serde_json::from_slice(&bytes)
            .map_err(|source| Error::State { path: path.display().to_string(), source })
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = sandbox.chars().map(safe).collect();
        self.directory.join(format!("{name}.json"))
    }

    fn failed(&self, verb: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io(format!("cannot {verb} the network state in {}", self.directory.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stdx::files::RealFiles;

    fn record(sandbox: &str) -> Record {
        Record {
            sandbox: sandbox.into(),
            addresses: vec!["10.244.1.7".parse().unwrap()],
            device: Some("gnt0".into()),
            port_mappings: vec![],
            cni: None,
        }
    }

    #[test]
    fn records_survive_and_debris_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Arc::new(RealFiles), directory.path()).unwrap();
        store.save(&record("one")).unwrap();
        store.save(&record("one")).unwrap();
        store.save(&record("two/../x")).unwrap();
        std::fs::write(directory.path().join("torn.json"), b"{\"sandbox\":").unwrap();
        std::fs::write(directory.path().join("half.new"), b"").unwrap();
        let mut loaded: Vec<String> =
            store.load().unwrap().into_iter().map(|record| record.sandbox).collect();
        loaded.sort();
        assert_eq!(loaded, ["one", "two/../x"]);
        store.remove("one").unwrap();
        store.remove("one").unwrap();
        assert_eq!(store.load().unwrap(), [record("two/../x")]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
