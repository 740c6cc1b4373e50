use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use cluster::{ClusterConfig, Layout};
use serde_json::{Value, json};

use super::{Outcome, block_on, existing};
use crate::{
    assemble::{AgentRequest, ask_agent},
    terminal::{Output, Progress},
};

/// Load, list and remove images on the nodes of a local cluster
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  gantry image load app.tar\n  gantry image load gantry/hello\n  \
                        gantry image ls\n  gantry image rm docker.io/library/app:1"
)]
pub struct Image {
    /// The cluster's name
    #[arg(long, default_value = "gantry", global = true)]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Load archives (docker save, OCI) into every node; `gantry/hello` is made on the spot
    Load {
        #[arg(required = true)]
        archives: Vec<String>,
    },
    /// List the images of every node
    #[command(alias = "list")]
    Ls {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove images from every node
    #[command(alias = "remove")]
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
    },
}

pub const HELLO_IMAGE: &str = "gantry/hello";

impl Image {
    pub fn run(self) -> Outcome {
        let layout = existing(&self.name)?;
        let config = layout.load()?;
        block_on(|env| async move {
            match &self.action {
                Action::Load { archives } => {
                    let mut progress = Progress::new(&env, false);
                    for archive in archives {
                        progress.step(format!("Loading {archive}"));
                        for loaded in load(&layout, &config, archive).await? {
                            progress.finish();
                            println!("{loaded}");
                        }
                    }
                }
                Action::Ls { output } => list(&layout, &config, *output).await?,
                Action::Rm { images } => remove(&layout, &config, images).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Puts one archive into every node. Gives back the names that it held.
pub async fn load(layout: &Layout, config: &ClusterConfig, archive: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for node in &config.nodes {
        let inside = PathBuf::from("/var/lib/gantry-import.tar");
        let outside = layout.node_root(&node.name).join("var/lib/gantry-import.tar");
        let outcome = async {
            place(archive, &outside)?;
            ask_agent(layout, &node.name, &AgentRequest::LoadImage(inside)).await
        }
        .await;
        let _ = fs::remove_file(&outside);
        let answer = outcome.with_context(|| format!("cannot load into {}", node.name))?;
        names = strings(&answer["images"]);
    }
    Ok(names)
}

/// The archive as a file of the node's tree: linked where that is possible, else copied.
fn place(archive: &str, target: &std::path::Path) -> Result<()> {
    let _ = fs::remove_file(target);
    if archive.trim_end_matches(":latest") == HELLO_IMAGE {
        return write_hello(target);
    }
    if fs::hard_link(archive, target).is_err() {
        fs::copy(archive, target).with_context(|| format!("cannot read {archive}"))?;
    }
    Ok(())
}

/// A docker archive whose only file is this program.
fn write_hello(target: &std::path::Path) -> Result<()> {
    let program = fs::read("/proc/self/exe").context("cannot read this program")?;
    let layer = layer_of(&program)?;
    let digest = format!("sha256:{}", sha256(&layer));
    let config = serde_json::to_vec(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": ["/hello", "hello"],
            "ExposedPorts": { "8080/tcp": {} },
            "User": "65532:65532",
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [digest] },
        "history": [{ "created_by": "gantry image load gantry/hello" }],
    }))?;
    let config_name = format!("{}.json", sha256(&config));
    let manifest = serde_json::to_vec(&json!([{
        "Config": config_name,
        "RepoTags": [format!("{HELLO_IMAGE}:latest")],
        "Layers": ["layer.tar"],
    }]))?;
    let mut archive = tar::Builder::new(fs::File::create(target)?);
    for (name, bytes) in
        [(config_name.as_str(), &config), ("layer.tar", &layer), ("manifest.json", &manifest)]
    {
        append(&mut archive, name, bytes, 0o644)?;
    }
    archive.finish()?;
    Ok(())
}

fn layer_of(program: &[u8]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "hello", program, 0o755)?;
    append(&mut layer, "etc/passwd", b"nonroot:x:65532:65532::/:/hello\n", 0o644)?;
    Ok(layer.into_inner()?)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn list(layout: &Layout, config: &ClusterConfig, output: Output) -> Result<()> {
    let mut nodes = serde_json::Map::new();
    for node in &config.nodes {
        let answer = ask_agent(layout, &node.name, &AgentRequest::ListImages).await?;
        nodes.insert(node.name.clone(), answer["images"].clone());
    }
    if output.print(&Value::Object(nodes.clone()))? {
        return Ok(());
    }
    for (node, images) in &nodes {
        for image in images.as_array().into_iter().flatten() {
            let mebibytes = image["bytes"].as_u64().unwrap_or(0) as f64 / f64::from(1 << 20);
            println!("{node:<10} {mebibytes:>8.1} MiB  {}", strings(&image["names"]).join(" "));
        }
    }
    Ok(())
}

async fn remove(layout: &Layout, config: &ClusterConfig, images: &[String]) -> Result<()> {
    for image in images {
        let mut found = false;
        for node in &config.nodes {
            let request = AgentRequest::RemoveImage(image.clone());
            found |= ask_agent(layout, &node.name, &request).await?["removed"] == json!(true);
        }
        if !found {
            bail!("no node has the image {image:?}; see `gantry image ls`");
        }
        println!("removed {image}");
    }
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
