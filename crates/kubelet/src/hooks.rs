//! Lifecycle hooks: `postStart` and `preStop`.

use std::time::Duration;

use cri::v1;
use k8s_openapi::api::core::v1::LifecycleHandler;

use crate::{
    context::Context,
    http_check,
    pod::{Container, Pod},
};

/// Runs a hook to its end; the error is what events tell.
pub async fn run(
    context: &Context,
    pod: &Pod,
    container: &Container,
    container_id: &str,
    pod_ips: &[String],
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let request = v1::ExecSyncRequest {
            container_id: container_id.to_owned(),
            cmd: exec.command.clone().unwrap_or_default(),
            timeout: 0,
        };
        let answer = context.runtime.clone().exec_sync(request).await;
        let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
        if answer.exit_code == 0 {
            return Ok(());
        }
        let output = [answer.stdout, answer.stderr].concat();
        return Err(format!(
            "command exited with {}: {}",
            answer.exit_code,
            String::from_utf8_lossy(&output)
        ));
    }
    if let Some(get) = &hook.http_get {
        let port = http_check::resolve_port(&get.port, container)?;
        let host = http_check::host_of(get.host.as_ref(), pod, pod_ips);
        let agent = format!("kube-lifecycle/{}", short_version(&context.config.version));
        let limit = Duration::from_secs(3600);
        let answer = http_check::get(&context.env, get, &host, port, &agent, limit).await?;
        // Upstream looks at the connection alone, not at the code.
        tracing::debug!(code = answer.code, "lifecycle hook answered");
        return Ok(());
    }
    if let Some(sleep) = &hook.sleep {
        context.env.sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err("the hook names no action that this node knows".into())
}

/// `1.37` of `v1.37.2`.
pub fn short_version(version: &str) -> String {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{major}.{minor}")
}
