//! A cluster under test and the real kubectl.

use std::{
    cell::Cell,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::peers;

/// The cluster's name; tests never touch a cluster that a user made.
pub const NAME: &str = "e2e";
const PORT: &str = "16443";

pub struct Cluster {
    gantry: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    up_secs: f64,
    removed: Cell<bool>,
    strict: bool,
}

impl Cluster {
    /// Brings up three nodes with the sample's image.
    pub fn up(options: &[&str], strict: bool) -> Result<Self> {
        let gantry = binary()?;
        let kubectl = peers::path("kubectl")?;
        if PathBuf::from("/var/lib/gantry/clusters").join(NAME).exists() {
            output(Command::new(&gantry).args(["down", NAME]))?;
        }
        let started = Instant::now();
        let mut up = Command::new(&gantry);
        output(
            up.args(["up", NAME, "--port", PORT, "--timeout", "180", "-o", "json"]).args(options),
        )?;
        let up_secs = started.elapsed().as_secs_f64();
        let path = output(Command::new(&gantry).args(["kubeconfig", NAME, "--path"]))?;
        let kubeconfig = PathBuf::from(path.trim());
        let cluster =
            Self { gantry, kubectl, kubeconfig, up_secs, removed: Cell::new(false), strict };
        cluster.gantry(&["image", "--name", NAME, "load", "gantry/hello"])?;
        let busybox = busybox_image()?;
        cluster.gantry(&["image", "--name", NAME, "load", &busybox.to_string_lossy()])?;
        Ok(cluster)
    }

    pub fn up_figure(&self) -> String {
        format!("three nodes Ready after {:.2} s", self.up_secs)
    }

    /// Holds a figure against its target: with `--strict` a miss fails, otherwise it is told.
    /// Times on a shared machine are no gate by themselves.
    pub fn hold(&self, what: &str, seconds: f64, target_secs: f64) -> Result<()> {
        if seconds <= target_secs {
            return Ok(());
        }
        let missed = format!("{what} took {seconds:.3} s, the target is {target_secs} s");
        if self.strict {
            bail!("{missed}");
        }
        println!("note  {missed}");
        Ok(())
    }

    pub fn down(&self) -> Result<String> {
        self.removed.set(true);
        self.gantry(&["down", NAME])?;
        Ok("removed".into())
    }

    pub fn gantry(&self, arguments: &[&str]) -> Result<String> {
        output(Command::new(&self.gantry).args(arguments))
    }

    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", std::env::temp_dir());
        command.stdin(Stdio::null());
        command
    }

    /// kubectl's output; a failure carries what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.kubectl_command().args(arguments))
    }

    /// A command line as one would type it; no quoting but single quotes.
    pub fn k(&self, line: &str) -> Result<String> {
        let words = split(line);
        self.kubectl(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// kubectl with something on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        use std::io::Write;
        let mut child = self
            .kubectl_command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        let done = child.wait_with_output()?;
        if !done.status.success() {
            bail!(
                "kubectl {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], yaml)
    }

    pub fn json(&self, line: &str) -> Result<Value> {
        serde_json::from_str(&self.k(&format!("{line} -o json"))?).context("kubectl's JSON")
    }

    /// The host's pid of a node's PID 1.
    pub fn node_pid(&self, node: &str) -> Result<i32> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.iter().find(|n| n["name"] == node);
        let pid = found.and_then(|n| n["pid"].as_i64());
        pid.map(|pid| pid as i32).with_context(|| format!("{node} does not run"))
    }

    /// `gantry status`, whose exit code only says whether all is well.
    pub fn status(&self) -> Result<Value> {
        let done = Command::new(&self.gantry).args(["status", NAME, "-o", "json"]).output()?;
        serde_json::from_slice(&done.stdout).context("gantry's JSON")
    }

    /// Prints what helps to understand a failure.
    pub fn describe(&self) {
        for line in
            ["get nodes -o wide", "get pods -A -o wide", "get events -A --sort-by=.lastTimestamp"]
        {
            let text = self.k(line).unwrap_or_else(|error| format!("{error:#}"));
            let lines: Vec<&str> = text.lines().collect();
            println!("--- kubectl {line}");
            for line in &lines[lines.len().saturating_sub(40)..] {
                println!("    {line}");
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.removed.get() {
            let _ = self.down();
        }
    }
}

/// Asks every few milliseconds until `check` gives something, at most for `limit_secs`.
pub fn eventually<T>(
    what: &str,
    limit_secs: u64,
    check: impl Fn() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < Duration::from_secs(limit_secs) {
        match check() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match last {
        Some(error) => Err(error.context(format!("{what}: not within {limit_secs} s"))),
        None => bail!("{what}: not within {limit_secs} s"),
    }
}

pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("{shown}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().expect("never empty").push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The release binary, built if need be.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GANTRY_BINARY") {
        return Ok(path.into());
    }
    let metadata =
        output(Command::new(env!("CARGO")).args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str().context("no target directory")?;
    output(Command::new(env!("CARGO")).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "gantry",
    ]))?;
    let host = output(Command::new("rustc").arg("-vV"))?;
    let triple = host.lines().find_map(|l| l.strip_prefix("host: ")).context("no host triple")?;
    Ok(PathBuf::from(target).join(triple).join("release/gantry"))
}

/// A docker archive `busybox:1` of the static busybox of this machine, with its applets linked.
fn busybox_image() -> Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("gantry-busybox-{}", std::process::id()));
    let root = directory.join("root");
    for name in ["bin", "tmp", "etc", "root", "var"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("install the package busybox-static")?;
    for applet in output(Command::new("/bin/busybox").arg("--list"))?.lines() {
        let _ = std::os::unix::fs::symlink("/bin/busybox", root.join("bin").join(applet));
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    let tar = |directory: &std::path::Path, file: &std::path::Path, names: &[&str]| {
        output(Command::new("tar").arg("-C").arg(directory).arg("-cf").arg(file).args(names))
    };
    tar(&root, &directory.join("layer.tar"), &["."])?;
    let sum = output(Command::new("sha256sum").arg(directory.join("layer.tar")))?;
    let digest = sum.split_whitespace().next().context("no digest")?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": ["busybox:1"], "Layers": ["layer.tar"],
    }]);
    std::fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let archive = std::env::temp_dir().join("gantry-e2e-busybox.tar");
    tar(&directory, &archive, &["manifest.json", "config.json", "layer.tar"])?;
    std::fs::remove_dir_all(&directory)?;
    Ok(archive)
}
