//! `cargo xtask facts`: the shape of the Kubernetes API as data.
//!
//! Sources are the Go modules that publish it: struct declarations with their JSON and protobuf
//! tags, the OpenAPI description (required, defaults, list types, merge keys) and the discovery
//! documents. Names, numbers and flags are taken, never sentences.
//!
//! Both files are line based, each line one fact, words separated by one space:
//!
//! ```text
//! type OPENAPI_NAME GO_NAME [atomic]
//! kind GROUP/VERSION KIND                      the type above is the body of this kind
//! field NAME TYPE [OUTER.]NUMBER FLAG…         NUMBER 0: not in protobuf
//! resource GROUP/VERSION PLURAL KIND FLAG…
//! sub NAME GROUP/VERSION KIND VERBS            a subresource of the resource above
//! ```

mod go;
mod modules;
mod openapi;
mod resources;
mod types;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

pub fn run(args: &[String]) -> Result<()> {
    let check = match args {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => bail!("the only argument is --check"),
    };
    let modules = modules::locate()?;
    let mut stale = Vec::new();
    for (name, text) in [
        ("types.txt", types::generate(&modules)?),
        ("resources.txt", resources::generate(&modules)?),
    ] {
        let path = data_dir().join(name);
        if check {
            if fs::read_to_string(&path).unwrap_or_default() != text {
                stale.push(name);
            }
        } else {
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
    }
    if !stale.is_empty() {
        bail!("out of date: {}; run `cargo xtask facts`", stale.join(", "));
    }
    Ok(())
}

fn data_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/api/data")
}
