//! CRI's runtime service: each call is one step elsewhere.
//!
//! Steps that change something run on tasks of their own, so that a caller that gives up (a
//! closed connection, a dropped future) never leaves one half done.

use std::future::Future;

use cri::v1::{self, runtime_service_server::RuntimeService};
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status};

use crate::{
    Runtime, container,
    error::{Error, Result},
    exec, sandbox,
    stats::{self, selects},
};

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = BoxStream<'static, Result<T, Status>>;

/// The version of CRI's own contract, not of this software.
const API_VERSION: &str = "v1";

impl Runtime {
    /// Runs a step to its end even when its caller goes away.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        step: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.0.env.spawn("cri-call", step).await.unwrap_or(Err(Error::Panic))
    }

    fn list_matching_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<_> = self.state().containers.values().cloned().collect();
        containers
            .iter()
            .filter(|container| {
                (filter.id.is_empty() || container.id.starts_with(&filter.id))
                    && (filter.pod_sandbox_id.is_empty()
                        || container.sandbox_id.starts_with(&filter.pod_sandbox_id))
                    && selects(&filter.label_selector, &container.config.labels)
            })
            .map(|container| container.summary())
            .filter(|summary| {
                filter.state.as_ref().is_none_or(|wanted| wanted.state == summary.state)
            })
            .collect()
    }

    fn list_matching_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = self.state().sandboxes.values().cloned().collect();
        sandboxes
            .iter()
            .filter(|sandbox| {
                (filter.id.is_empty() || sandbox.id.starts_with(&filter.id))
                    && selects(&filter.label_selector, &sandbox.config.labels)
            })
            .map(|sandbox| sandbox.summary())
            .filter(|summary| {
                filter.state.as_ref().is_none_or(|wanted| wanted.state == summary.state)
            })
            .collect()
    }

    async fn container_stats_of(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>> {
        let runtime = self.clone();
        self.blocking(move || {
            let containers = stats::matching_containers(&runtime, filter);
            Ok(containers.iter().map(|container| stats::container(&runtime, container)).collect())
        })
        .await
    }

    async fn sandbox_stats_of(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>> {
        let runtime = self.clone();
        self.blocking(move || {
            let sandboxes = stats::matching_sandboxes(&runtime, filter);
            Ok(sandboxes.iter().map(|sandbox| stats::sandbox(&runtime, sandbox)).collect())
        })
        .await
    }
}

fn once<T: Send + 'static>(response: T) -> Response<Streamed<T>> {
    Response::new(futures::stream::iter([Ok(response)]).boxed())
}

fn answer<T>(response: T) -> Answer<T> {
    Ok(Response::new(response))
}

fn unsupported<T>(what: &str) -> Answer<T> {
    Err(Error::Unsupported(format!("this runtime does not support {what}")).into())
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;

    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        answer(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "gantry".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        })
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let condition = |kind: &str, trouble: Option<String>, reason: &str| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: trouble.is_none(),
            reason: trouble.as_ref().map(|_| reason.to_owned()).unwrap_or_default(),
            message: trouble.unwrap_or_default(),
        };
        let network = self.0.network.not_ready();
        let conditions = vec![
            condition("RuntimeReady", None, ""),
            condition("NetworkReady", network, "NetworkPluginNotReady"),
        ];
        let features =
            v1::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
        let handler = v1::RuntimeHandler { name: String::new(), features: Some(features) };
        answer(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions }),
            runtime_handlers: vec![handler],
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        let linux =
            v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 };
        answer(v1::RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        // The pod network's range, which is the network's business and not ours.
        answer(v1::UpdateRuntimeConfigResponse {})
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let runtime = self.clone();
        let request = request.into_inner();
        let step = async move { sandbox::run(&runtime, request).await };
        answer(v1::RunPodSandboxResponse { pod_sandbox_id: self.detached(step).await? })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().pod_sandbox_id);
        self.detached(async move { sandbox::stop(&runtime, &id).await }).await?;
        answer(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().pod_sandbox_id);
        self.detached(async move { sandbox::remove(&runtime, &id).await }).await?;
        answer(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let sandbox = self.sandbox(&request.into_inner().pod_sandbox_id)?;
        let containers = self.containers_of(&sandbox.id);
        answer(v1::PodSandboxStatusResponse {
            status: Some(sandbox.status()),
            containers_statuses: containers.iter().map(|own| own.status(self)).collect(),
            timestamp: self.now_ns(),
            ..Default::default()
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = self.list_matching_sandboxes(request.into_inner().filter);
        answer(v1::ListPodSandboxResponse { items })
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let pod_sandboxes = self.list_matching_sandboxes(request.into_inner().filter);
        Ok(once(v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let runtime = self.clone();
        let request = request.into_inner();
        let step = async move { container::create(&runtime, request).await };
        answer(v1::CreateContainerResponse { container_id: self.detached(step).await? })
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().container_id);
        self.detached(async move { container::start(&runtime, &id).await }).await?;
        answer(v1::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let (runtime, request) = (self.clone(), request.into_inner());
        self.detached(async move {
            match runtime.container(&request.container_id) {
                Ok(found) => container::stop(&runtime, &found, request.timeout).await,
                Err(Error::NotFound(..)) => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await?;
        answer(v1::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().container_id);
        self.detached(async move { container::remove(&runtime, &id).await }).await?;
        answer(v1::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let containers = self.list_matching_containers(request.into_inner().filter);
        answer(v1::ListContainersResponse { containers })
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = self.list_matching_containers(request.into_inner().filter);
        Ok(once(v1::StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let container = self.container(&request.into_inner().container_id)?;
        let status = Some(container.status(self));
        answer(v1::ContainerStatusResponse { status, ..Default::default() })
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let (runtime, request) = (self.clone(), request.into_inner());
        let resources = request.linux.unwrap_or_default();
        let id = request.container_id;
        self.detached(async move { container::update(&runtime, &id, resources).await }).await?;
        answer(v1::UpdateContainerResourcesResponse {})
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        // The pod's group belongs to the kubelet, which has set it already.
        self.sandbox(&request.into_inner().pod_sandbox_id)?;
        answer(v1::UpdatePodSandboxResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        container::reopen_log(self, &request.into_inner().container_id).await?;
        answer(v1::ReopenContainerLogResponse {})
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Answer<v1::ExecSyncResponse> {
        let (runtime, request) = (self.clone(), request.into_inner());
        let step = async move { exec::exec_sync(&runtime, request).await };
        answer(self.detached(step).await?)
    }

    async fn exec(&self, _: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        unsupported("exec by URL; it hands streams over in process")
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        unsupported("attach by URL; it hands streams over in process")
    }

    async fn port_forward(
        &self,
        _: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        unsupported("port-forward by URL; it hands streams over in process")
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().container_id);
        let container = self.container(&id)?;
        let stats = self.blocking(move || Ok(stats::container(&runtime, &container))).await?;
        answer(v1::ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let stats = self.container_stats_of(request.into_inner().filter).await?;
        answer(v1::ListContainerStatsResponse { stats })
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let container_stats = self.container_stats_of(request.into_inner().filter).await?;
        Ok(once(v1::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let runtime = self.clone();
        let sandbox = self.sandbox(&request.into_inner().pod_sandbox_id)?;
        let stats = self.blocking(move || Ok(stats::sandbox(&runtime, &sandbox))).await?;
        answer(v1::PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = self.sandbox_stats_of(request.into_inner().filter).await?;
        answer(v1::ListPodSandboxStatsResponse { stats })
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let pod_sandbox_stats = self.sandbox_stats_of(request.into_inner().filter).await?;
        Ok(once(v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let receiver = self.0.events.subscribe();
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), receiver)),
                // The reader must list anew; an error makes it do so.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => {
                    let text = format!("the reader was too slow and missed {missed} events");
                    Some((Err(Status::data_loss(text)), receiver))
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => None,
            }
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        answer(v1::ListMetricDescriptorsResponse::default())
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        answer(v1::ListPodSandboxMetricsResponse::default())
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Ok(once(v1::StreamPodSandboxMetricsResponse::default()))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        unsupported("checkpoints")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        unsupported("checkpoints")
    }

    async fn restore_pod(
        &self,
        _: Request<v1::RestorePodRequest>,
    ) -> Answer<v1::RestorePodResponse> {
        unsupported("checkpoints")
    }
}
