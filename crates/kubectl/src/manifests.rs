//! Objects from files, directories and standard input.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use machinery::{Object, Value};

use crate::{Error, Result, discovery::Info, session::Session};

/// `-f` and `-R`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Files {
    /// File, directory or - (standard input) with objects in YAML or JSON
    #[arg(short = 'f', long = "filename", value_delimiter = ',')]
    pub filename: Vec<String>,
    /// Go through the directories below the given ones
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// One object of a file, with the resource that holds its kind.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub info: Info,
    pub namespace: String,
    pub object: Object,
    /// The file, as the user named it.
    pub source: String,
}

impl Files {
    pub fn is_empty(&self) -> bool {
        self.filename.is_empty()
    }

    /// Reads everything, in the order given, files of a directory by name.
    pub fn read(&self) -> Result<Vec<(String, Object)>> {
        let mut out = Vec::new();
        for name in &self.filename {
            if name == "-" {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .map_err(|e| Error::other(format!("cannot read standard input: {e}")))?;
                add(&mut out, "STDIN", &text)?;
                continue;
            }
            if name.starts_with("http://") || name.starts_with("https://") {
                return Err(Error::other(format!(
                    "reading {name}: files from the network are not supported; download it first"
                )));
            }
            for path in paths(Path::new(name), self.recursive)? {
                let text = std::fs::read_to_string(&path)
                    .map_err(|e| Error::other(format!("cannot read {}: {e}", path.display())))?;
                add(&mut out, &path.display().to_string(), &text)?;
            }
        }
        Ok(out)
    }

    /// Reads everything and finds the resources and namespaces.
    pub async fn load(&self, session: &Session) -> Result<Vec<Manifest>> {
        let objects = self.read()?;
        if objects.is_empty() {
            return Err(Error::other("no objects passed to the command"));
        }
        let discovery = session.discovery().await?;
        let find = |(source, object): (String, Object)| {
            let info = object.gvk().and_then(|gvk| discovery.of_kind(&gvk)).ok_or_else(|| {
                Error::other(format!(
                    "resource mapping not found for name: {:?} namespace: {:?} from {source:?}: no matches for kind {:?} in version {:?}\nensure CRDs are installed first",
                    object.name(), object.namespace(), object.kind(), object.api_version()
                ))
            })?;
            let namespace = namespace_for(session, &info, &object)?;
            let mut object = object;
            if info.resource.namespaced {
                object.set_namespace(&namespace);
            }
            Ok(Manifest { info, namespace, object, source })
        };
        objects.into_iter().map(find).collect()
    }
}

/// The object's own namespace must be that of `-n`, when both are given.
fn namespace_for(session: &Session, info: &Info, object: &Object) -> Result<String> {
    if !info.resource.namespaced {
        return Ok(String::new());
    }
    let own = object.namespace();
    match (own, session.global.namespace.as_deref()) {
        ("", _) => Ok(session.namespace()?.to_owned()),
        (own, Some(asked)) if own != asked => Err(Error::other(format!(
            "the namespace from the provided object {own:?} does not match the namespace {asked:?}. You must pass '--namespace={own}' to perform this operation."
        ))),
        (own, _) => Ok(own.to_owned()),
    }
}

fn paths(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.exists() {
        return Err(Error::other(format!(
            "the path {:?} does not exist",
            path.display().to_string()
        )));
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    directory(path, recursive, &mut found)?;
    if found.is_empty() {
        return Err(Error::other(format!(
            "error reading [{}]: recognized file extensions are [.json .yaml .yml]",
            path.display()
        )));
    }
    Ok(found)
}

fn directory(path: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(path)
        .map_err(|e| Error::other(format!("cannot read {}: {e}", path.display())))?;
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        let extension = entry.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if entry.is_dir() {
            if recursive {
                directory(&entry, recursive, found)?;
            }
        } else if ["json", "yaml", "yml"].contains(&extension) {
            found.push(entry);
        }
    }
    Ok(())
}

/// Adds the objects of a text; lists are taken apart.
fn add(out: &mut Vec<(String, Object)>, source: &str, text: &str) -> Result<()> {
    let fail = |why: String| Error::other(format!("error parsing {source}: {why}"));
    let documents = match text.trim_start().starts_with('{') {
        true => {
            machinery::json::parse(text.as_bytes()).map(|value| vec![value]).or_else(|_| yaml(text))
        }
        false => yaml(text),
    };
    for document in documents.map_err(fail)? {
        for item in flatten(document) {
            let object =
                Object::from_value(item).ok_or_else(|| fail("a document is no object".into()))?;
            for (field, value) in [("kind", object.kind()), ("apiVersion", object.api_version())] {
                if value.is_empty() {
                    return Err(Error::other(format!(
                        "error validating {source:?}: {field} not set"
                    )));
                }
            }
            out.push((source.to_owned(), object));
        }
    }
    Ok(())
}

fn yaml(text: &str) -> std::result::Result<Vec<Value>, String> {
    machinery::yaml::parse_many(text).map_err(|e| e.to_string())
}

fn flatten(document: Value) -> Vec<Value> {
    let is_list =
        document.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    match document.get("items").and_then(Value::as_list) {
        Some(items) if is_list => items.iter().cloned().flat_map(flatten).collect(),
        _ => vec![document],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let mut out = Vec::new();
        add(&mut out, "x", text).unwrap();
        out.iter().map(|(_, object)| object.name().to_owned()).collect()
    }

    #[test]
    fn documents_and_lists_become_objects() {
        let object =
            |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
        assert_eq!(names(&format!("{}---\n{}---\n", object("a"), object("b"))), ["a", "b"]);
        let list = r#"{"kind": "List", "apiVersion": "v1", "items": [{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "c"}}]}"#;
        assert_eq!(names(list), ["c"]);
        let untyped = add(&mut Vec::new(), "x", "metadata: {name: a}\n").unwrap_err().text();
        assert_eq!(untyped, "error: error validating \"x\": kind not set");
        assert!(add(&mut Vec::new(), "x", "a: [").is_err());
    }

    #[test]
    fn directories_give_their_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.yaml", "a.json", "c.txt", "sub/d.yml"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let list = |recursive| {
            let found = paths(dir.path(), recursive).unwrap();
            found
                .iter()
                .map(|p| p.strip_prefix(dir.path()).unwrap().display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(list(false), ["a.json", "b.yaml"]);
        assert_eq!(list(true), ["a.json", "b.yaml", "sub/d.yml"]);
        assert!(paths(Path::new("/no/such/path"), false).is_err());
    }
}
