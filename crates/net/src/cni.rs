//! External network plugins, by the CNI specification 1.0: each is a program that reads its
//! configuration on standard input, learns the rest from its environment, and answers in JSON.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Map, Value, json};
use stdx::Env;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{Error, pod::Sandbox, state::CniRecord};

/// A configured list of plugins.
#[derive(Clone, Debug, PartialEq)]
pub struct Cni {
    config: Value,
    bin_dirs: Vec<PathBuf>,
}

/// What plugins know a sandbox's device by.
const INTERFACE: &str = "eth0";
const TIME_LIMIT: Duration = Duration::from_secs(220);
const DEFAULT_VERSION: &str = "0.1.0";

impl Cni {
    /// The first valid configuration of a directory, by file name; `None` when there is none.
    pub fn load(directory: &Path, bin_dirs: &[PathBuf]) -> Result<Option<Self>, Error> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let what = format!("cannot read {}", directory.display());
                return Err(Error::Io { what, source });
            }
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.sort();
        let config = paths.iter().filter(|path| is_config(path)).find_map(|path| {
            let config = serde_json::from_slice(&std::fs::read(path).ok()?).ok().and_then(as_list);
            if config.is_none() {
                tracing::warn!(path = %path.display(), "not a CNI configuration; passed over");
            }
            config
        });
        Ok(config.map(|config| Self { config, bin_dirs: bin_dirs.to_vec() }))
    }

    /// The plugins that set a sandbox up, whatever is configured now.
    pub fn from_record(record: &CniRecord, bin_dirs: &[PathBuf]) -> Self {
        Self { config: record.config.clone(), bin_dirs: bin_dirs.to_vec() }
    }

    /// What to remember for a sandbox's DEL, before its ADD.
    pub fn record(&self, sandbox: &Sandbox) -> CniRecord {
        let Sandbox { id, namespace, name, uid, .. } = sandbox;
        let mut config = self.config.clone();
        config["runtimeConfig"] = runtime_config(sandbox);
        CniRecord {
            config,
            result: Value::Null,
            arguments: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                 K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
            ),
            netns: sandbox.netns.clone(),
        }
    }

    /// Runs ADD through the list, each plugin given the result of the one before.
    pub async fn add(&self, env: &Env, id: &str, record: &CniRecord) -> Result<Value, Error> {
        let mut result = Value::Null;
        for plugin in self.plugins() {
            let input = plugin_input(&record.config, plugin, &result);
            result = self.call(env, "ADD", id, record, plugin, &input).await?;
        }
        Ok(result)
    }

    /// Asks every plugin whether the sandbox's network is as it made it.
    pub async fn check(&self, env: &Env, id: &str, record: &CniRecord) -> Result<(), Error> {
        if record.config["disableCheck"] == Value::Bool(true) {
            return Ok(());
        }
        for plugin in self.plugins() {
            let input = plugin_input(&record.config, plugin, &record.result);
            self.call(env, "CHECK", id, record, plugin, &input).await?;
        }
        Ok(())
    }

    /// Runs DEL through the list backwards.
    pub async fn delete(&self, env: &Env, id: &str, record: &CniRecord) -> Result<(), Error> {
        for plugin in self.plugins().collect::<Vec<_>>().into_iter().rev() {
            let input = plugin_input(&record.config, plugin, &record.result);
            self.call(env, "DEL", id, record, plugin, &input).await?;
        }
        Ok(())
    }

    fn plugins(&self) -> impl Iterator<Item = &Value> {
        self.config["plugins"].as_array().into_iter().flatten()
    }

    async fn call(
        &self,
        env: &Env,
        command: &'static str,
        id: &str,
        record: &CniRecord,
        plugin: &Value,
        input: &Value,
    ) -> Result<Value, Error> {
        let name = plugin["type"].as_str().unwrap_or_default().to_owned();
        let failed = |message: String| Error::Cni { plugin: name.clone(), command, message };
        let program = self
            .find(&name)
            .ok_or_else(|| failed(format!("no such program in {}", join(&self.bin_dirs))))?;
        // A namespace that is gone is told as an empty name, by the specification.
        let netns = if record.netns.exists() { record.netns.clone() } else { PathBuf::new() };
        let mut child = Command::new(program)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", &record.arguments)
            .env("CNI_PATH", join(&self.bin_dirs))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::io(format!("cannot run the CNI plugin {name}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its input says why in its answer.
            let _ = stdin.write_all(input.to_string().as_bytes()).await;
        }
        let output = env
            .timeout(TIME_LIMIT, child.wait_with_output())
            .await
            .ok_or_else(|| failed(format!("no answer within {} s", TIME_LIMIT.as_secs())))?
            .map_err(Error::io(format!("cannot run the CNI plugin {name}")))?;
        if !output.status.success() {
            return Err(failed(error_text(&output.stdout, &output.stderr, output.status)));
        }
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| failed(format!("its answer is not JSON: {error}")))
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        let plain = !name.is_empty() && !name.contains('/');
        let candidates = self.bin_dirs.iter().filter(|_| plain).map(|dir| dir.join(name));
        candidates.into_iter().find(|path| path.is_file())
    }
}

/// The addresses of the sandbox in a result of any version.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let parse = |text: &str| text.split('/').next().and_then(|ip| ip.parse().ok());
    let listed = result["ips"].as_array().into_iter().flatten();
    let of_pod = listed.filter(|ip| match ip["interface"].as_u64() {
        // Interfaces without a sandbox are the node's.
        Some(index) => result["interfaces"][index as usize]["sandbox"] != json!(""),
        None => true,
    });
    let mut found: Vec<IpAddr> = of_pod.filter_map(|ip| parse(ip["address"].as_str()?)).collect();
    for old in ["ip4", "ip6"] {
        found.extend(result[old]["ip"].as_str().and_then(parse));
    }
    found
}

fn is_config(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("conflist" | "conf" | "json"))
}

/// A single plugin's configuration is a list of one.
fn as_list(config: Value) -> Option<Value> {
    let name = config["name"].as_str()?.to_owned();
    if config["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty()) {
        return Some(config);
    }
    config["type"].as_str()?;
    let version = config.get("cniVersion").cloned().unwrap_or(json!(DEFAULT_VERSION));
    Some(json!({ "name": name, "cniVersion": version, "plugins": [config] }))
}

/// What plugins with the matching capability are told.
fn runtime_config(sandbox: &Sandbox) -> Value {
    let mappings = sandbox.port_mappings.iter().filter(|mapping| mapping.host_port > 0);
    let mappings: Vec<Value> = mappings
        .map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol,
                "hostIP": mapping.host_ip.map_or_else(String::new, |ip| ip.to_string()),
            })
        })
        .collect();
    json!({ "portMappings": mappings })
}

/// A plugin's own part of the list, with the list's name and version, the capabilities it asked
/// for, and the previous result.
fn plugin_input(list: &Value, plugin: &Value, previous: &Value) -> Value {
    let mut input = plugin.as_object().cloned().unwrap_or_default();
    input.insert("name".into(), list["name"].clone());
    let version = list.get("cniVersion").cloned().unwrap_or(json!(DEFAULT_VERSION));
    input.insert("cniVersion".into(), version);
    if let Some(Value::Object(capabilities)) = input.remove("capabilities") {
        let wanted = |name: &String| capabilities.get(name) == Some(&Value::Bool(true));
        let offered = list["runtimeConfig"].as_object().cloned().unwrap_or_default();
        let given: Map<String, Value> =
            offered.into_iter().filter(|(name, _)| wanted(name)).collect();
        if !given.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(given));
        }
    }
    if !previous.is_null() {
        input.insert("prevResult".into(), previous.clone());
    }
    Value::Object(input)
}

/// The specification's error object, else whatever the plugin said.
fn error_text(stdout: &[u8], stderr: &[u8], status: std::process::ExitStatus) -> String {
    let error: Value = serde_json::from_slice(stdout).unwrap_or_default();
    let parts = [&error["msg"], &error["details"]].map(|part| part.as_str().unwrap_or_default());
    let text = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ");
    match text.is_empty() {
        false => text,
        true => format!("{status}: {}", String::from_utf8_lossy(stderr).trim()),
    }
}

fn join(directories: &[PathBuf]) -> String {
    let texts: Vec<String> = directories.iter().map(|dir| dir.display().to_string()).collect();
    texts.join(":")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pod::{PortMapping, Transport};

    /// A directory with plugins that log their calls and answer with an address.
    fn plugins(directory: &Path, names: &[&str]) {
        for name in names {
            let script = format!(
                "#!/bin/sh\ninput=$(cat)\necho \"$CNI_COMMAND {name} $CNI_CONTAINERID $CNI_IFNAME $input\" \
                 >> {0}/log\nif [ -e {0}/fail-{name} ] && [ $CNI_COMMAND = ADD ]; then\n\
                 echo '{{\"code\":7,\"msg\":\"no luck\",\"details\":\"at all\"}}'; exit 1; fi\n\
                 [ $CNI_COMMAND = DEL ] || echo '{{\"cniVersion\":\"1.0.0\",\"interfaces\":[{{\"name\":\"br\",\"sandbox\":\"\"}},\
                 {{\"name\":\"eth0\",\"sandbox\":\"/x\"}}],\"ips\":[{{\"address\":\"10.1.2.1/24\",\"interface\":0}},\
                 {{\"address\":\"10.1.2.3/24\",\"interface\":1}}]}}'\n",
                directory.display()
            );
            let path = directory.join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    fn sandbox() -> Sandbox {
        let mapping = PortMapping {
            protocol: Transport::Tcp,
            host_ip: None,
            host_port: 8080,
            container_port: 80,
        };
        Sandbox {
            id: "box".into(),
            name: "pod".into(),
            port_mappings: vec![mapping],
            ..Sandbox::default()
        }
    }

    const LIST: &str = r#"{"name":"net","cniVersion":"1.0.0","plugins":[
        {"type":"first","mtu":1400},{"type":"second","capabilities":{"portMappings":true}}]}"#;

    #[tokio::test]
    async fn plugins_run_in_order_and_backwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        plugins(path, &["first", "second"]);
        std::fs::write(path.join("00-broken.conflist"), "{").unwrap();
        std::fs::write(path.join("10-list.conflist"), LIST).unwrap();
        let cni = Cni::load(path, &[path.to_owned()]).unwrap().expect("the list is valid");
        let env = Env::real();
        let mut record = cni.record(&sandbox());
        record.result = cni.add(&env, "box", &record).await.unwrap();
        assert_eq!(addresses(&record.result), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        cni.check(&env, "box", &record).await.unwrap();
        cni.delete(&env, "box", &record).await.unwrap();
        let log = std::fs::read_to_string(path.join("log")).unwrap();
        let calls: Vec<String> =
            log.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            calls,
            ["ADD first", "ADD second", "CHECK first", "CHECK second", "DEL second", "DEL first"]
        );
        let second = log.lines().nth(1).unwrap();
        assert!(second.contains("\"hostPort\":8080") && second.contains("\"prevResult\""));
        let first = log.lines().next().unwrap();
        assert!(first.contains("\"mtu\":1400") && !first.contains("runtimeConfig"));
        assert!(first.starts_with("ADD first box eth0 "));
    }

    #[tokio::test]
    async fn a_plugins_own_words_are_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        plugins(path, &["first"]);
        std::fs::write(path.join("fail-first"), "").unwrap();
        std::fs::write(path.join("one.conf"), r#"{"name":"n","type":"first"}"#).unwrap();
        let cni = Cni::load(path, &[path.to_owned()]).unwrap().unwrap();
        let record = cni.record(&sandbox());
        let error = cni.add(&Env::real(), "box", &record).await.unwrap_err();
        assert_eq!(error.to_string(), "first (ADD): no luck: at all");
    }

    #[test]
    fn no_configuration_is_no_cni() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Cni::load(directory.path(), &[]).unwrap(), None);
        assert_eq!(Cni::load(&directory.path().join("absent"), &[]).unwrap(), None);
    }
}
