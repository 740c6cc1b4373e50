//! A container runtime that only keeps books: what it was asked to do, and what would run.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cri::v1::{self, image_service_server::ImageService, runtime_service_server::RuntimeService};
use futures::Stream;
use stdx::Env;
use tokio::sync::broadcast;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
pub struct FakeRuntime(Arc<Inner>);

struct Inner {
    env: Env,
    books: Mutex<Books>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

#[derive(Default)]
pub struct Books {
    sandboxes: BTreeMap<String, v1::PodSandboxStatus>,
    containers: BTreeMap<String, (String, v1::ContainerStatus)>,
    serial: i64,
    /// The calls that changed something, in order.
    pub calls: Vec<String>,
}

impl FakeRuntime {
    pub fn new(env: &Env) -> Self {
        let (events, _) = broadcast::channel(64);
        Self(Arc::new(Inner { env: env.clone(), books: Mutex::default(), events }))
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.books().calls)
    }

    /// The running container of that name ends by itself.
    pub fn exit(&self, name: &str, code: i32) {
        let running = v1::ContainerState::ContainerRunning as i32;
        let id = {
            let books = self.books();
            let mut found = books.containers.iter().filter(|(_, (_, status))| {
                status.state == running && status.metadata.as_ref().unwrap().name == name
            });
            found.next().expect("it runs").0.clone()
        };
        self.end(&id, code);
    }

    fn end(&self, id: &str, code: i32) {
        let now = self.0.env.now().as_nanos() as i64;
        let mut books = self.books();
        let Some((sandbox, status)) = books.containers.get_mut(id) else { return };
        if status.state == v1::ContainerState::ContainerExited as i32 {
            return;
        }
        status.state = v1::ContainerState::ContainerExited as i32;
        status.exit_code = code;
        status.finished_at = now;
        let (sandbox, status) = (sandbox.clone(), status.clone());
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: v1::ContainerEventType::ContainerStoppedEvent as i32,
            created_at: now,
            pod_sandbox_status: books.sandboxes.get(&sandbox).cloned(),
            containers_statuses: vec![status],
        };
        drop(books);
        let _ = self.0.events.send(event);
    }

    /// Takes note of a call and gives an id and a time that no other has.
    fn note(&self, call: String) -> (MutexGuard<'_, Books>, String, i64) {
        let now = self.0.env.now().as_nanos() as i64;
        let mut books = self.books();
        books.calls.push(call);
        books.serial += 1;
        let (id, at) = (format!("id{}", books.serial), now + books.serial);
        (books, id, at)
    }

    fn name_of(&self, id: &str) -> String {
        let books = self.books();
        let found = books.containers.get(id).and_then(|(_, status)| status.metadata.clone());
        found.map(|metadata| metadata.name).unwrap_or_default()
    }
}

fn matches(
    wanted: Option<impl IntoIterator<Item = (String, String)>>,
    has: impl Fn(&str) -> Option<String>,
) -> bool {
    wanted.into_iter().flatten().all(|(key, value)| has(&key).as_ref() == Some(&value))
}

/// Methods that the agent does not need for what the tests do.
macro_rules! runtime_service {
    ({ $($written:item)* } $($method:ident $request:ident $response:ident;)*) => {
        #[tonic::async_trait]
        impl RuntimeService for FakeRuntime {
            $($written)*
            $(async fn $method(&self, _: Request<v1::$request>) -> Answer<v1::$response> {
                Err(Status::unimplemented(stringify!($method)))
            })*
        }
    };
}

macro_rules! no_streams {
    ($($alias:ident $method:ident $request:ident $response:ident;)*) => { $(pub type $alias = Items<v1::$response>;)* };
}

no_streams! {
    NoSandboxes stream_pod_sandboxes StreamPodSandboxesRequest StreamPodSandboxesResponse;
    NoContainers stream_containers StreamContainersRequest StreamContainersResponse;
    NoStats stream_container_stats StreamContainerStatsRequest StreamContainerStatsResponse;
    NoSandboxStats stream_pod_sandbox_stats StreamPodSandboxStatsRequest StreamPodSandboxStatsResponse;
    NoMetrics stream_pod_sandbox_metrics StreamPodSandboxMetricsRequest StreamPodSandboxMetricsResponse;
    NoImages stream_images StreamImagesRequest StreamImagesResponse;
}

runtime_service! {
    {
        type StreamPodSandboxesStream = NoSandboxes;
        type StreamContainersStream = NoContainers;
        type StreamContainerStatsStream = NoStats;
        type StreamPodSandboxStatsStream = NoSandboxStats;
        type StreamPodSandboxMetricsStream = NoMetrics;
        type GetContainerEventsStream = Items<v1::ContainerEventResponse>;

        async fn stream_pod_sandboxes(&self, _: Request<v1::StreamPodSandboxesRequest>) -> Answer<NoSandboxes> {
            Err(Status::unimplemented(""))
        }
        async fn stream_containers(&self, _: Request<v1::StreamContainersRequest>) -> Answer<NoContainers> {
            Err(Status::unimplemented(""))
        }
        async fn stream_container_stats(&self, _: Request<v1::StreamContainerStatsRequest>) -> Answer<NoStats> {
            Err(Status::unimplemented(""))
        }
        async fn stream_pod_sandbox_stats(&self, _: Request<v1::StreamPodSandboxStatsRequest>) -> Answer<NoSandboxStats> {
            Err(Status::unimplemented(""))
        }
        async fn stream_pod_sandbox_metrics(&self, _: Request<v1::StreamPodSandboxMetricsRequest>) -> Answer<NoMetrics> {
            Err(Status::unimplemented(""))
        }

        async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
            Ok(Response::new(v1::VersionResponse {
                runtime_name: "fake".into(),
                runtime_version: "1".into(),
                ..Default::default()
            }))
        }

        async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
            let condition = |kind: &str| v1::RuntimeCondition {
                r#type: kind.into(),
                status: true,
                ..Default::default()
            };
            let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
            let status = Some(v1::RuntimeStatus { conditions });
            Ok(Response::new(v1::StatusResponse { status, ..Default::default() }))
        }

        async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
            let config = request.into_inner().config.unwrap_or_default();
            let (mut books, id, at) = self.note("run sandbox".into());
            books.sandboxes.insert(id.clone(), v1::PodSandboxStatus {
                id: id.clone(),
                metadata: config.metadata,
                state: v1::PodSandboxState::SandboxReady as i32,
                created_at: at,
                network: Some(v1::PodSandboxNetworkStatus { ip: "10.0.0.9".into(), ..Default::default() }),
                labels: config.labels,
                ..Default::default()
            });
            Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
        }

        async fn stop_pod_sandbox(&self, request: Request<v1::StopPodSandboxRequest>) -> Answer<v1::StopPodSandboxResponse> {
            let id = request.into_inner().pod_sandbox_id;
            let (mut books, _, _) = self.note("stop sandbox".into());
            if let Some(sandbox) = books.sandboxes.get_mut(&id) {
                sandbox.state = v1::PodSandboxState::SandboxNotready as i32;
            }
            Ok(Response::new(v1::StopPodSandboxResponse {}))
        }

        async fn remove_pod_sandbox(&self, request: Request<v1::RemovePodSandboxRequest>) -> Answer<v1::RemovePodSandboxResponse> {
            let (mut books, _, _) = self.note("remove sandbox".into());
            books.sandboxes.remove(&request.into_inner().pod_sandbox_id);
            Ok(Response::new(v1::RemovePodSandboxResponse {}))
        }

        async fn pod_sandbox_status(&self, request: Request<v1::PodSandboxStatusRequest>) -> Answer<v1::PodSandboxStatusResponse> {
            let status = self.books().sandboxes.get(&request.into_inner().pod_sandbox_id).cloned();
            Ok(Response::new(v1::PodSandboxStatusResponse { status, ..Default::default() }))
        }

        async fn list_pod_sandbox(&self, request: Request<v1::ListPodSandboxRequest>) -> Answer<v1::ListPodSandboxResponse> {
            let wanted = request.into_inner().filter.map(|filter| filter.label_selector);
            let books = self.books();
            let found = books.sandboxes.values().filter(|status| {
                matches(wanted.clone(), |key| status.labels.get(key).cloned())
            });
            let items = found.map(|status| v1::PodSandbox {
                id: status.id.clone(),
                metadata: status.metadata.clone(),
                state: status.state,
                created_at: status.created_at,
                labels: status.labels.clone(),
                ..Default::default()
            });
            Ok(Response::new(v1::ListPodSandboxResponse { items: items.collect() }))
        }

        async fn create_container(&self, request: Request<v1::CreateContainerRequest>) -> Answer<v1::CreateContainerResponse> {
            let request = request.into_inner();
            let config = request.config.unwrap_or_default();
            let metadata = config.metadata.clone().unwrap_or_default();
            let (mut books, id, at) = self.note(format!("create {} {}", metadata.name, metadata.attempt));
            let status = v1::ContainerStatus {
                id: id.clone(),
                metadata: config.metadata,
                state: v1::ContainerState::ContainerCreated as i32,
                created_at: at,
                image: config.image,
                labels: config.labels,
                annotations: config.annotations,
                ..Default::default()
            };
            books.containers.insert(id.clone(), (request.pod_sandbox_id, status));
            Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
        }

        async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
            let id = request.into_inner().container_id;
            let name = self.name_of(&id);
            let (mut books, _, at) = self.note(format!("start {name}"));
            if let Some((_, status)) = books.containers.get_mut(&id) {
                status.state = v1::ContainerState::ContainerRunning as i32;
                status.started_at = at;
            }
            Ok(Response::new(v1::StartContainerResponse {}))
        }

        async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
            let request = request.into_inner();
            let name = self.name_of(&request.container_id);
            drop(self.note(format!("stop {name} {}s", request.timeout)));
            self.end(&request.container_id, 143);
            Ok(Response::new(v1::StopContainerResponse {}))
        }

        async fn remove_container(&self, request: Request<v1::RemoveContainerRequest>) -> Answer<v1::RemoveContainerResponse> {
            let id = request.into_inner().container_id;
            let name = self.name_of(&id);
            let (mut books, _, _) = self.note(format!("remove {name}"));
            books.containers.remove(&id);
            Ok(Response::new(v1::RemoveContainerResponse {}))
        }

        async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
            let wanted = request.into_inner().filter.map(|filter| filter.label_selector);
            let books = self.books();
            let found = books.containers.iter().filter(|(_, (_, status))| {
                matches(wanted.clone(), |key| status.labels.get(key).cloned())
            });
            let containers = found.map(|(id, (sandbox, status))| v1::Container {
                id: id.clone(),
                pod_sandbox_id: sandbox.clone(),
                state: status.state,
                ..Default::default()
            });
            Ok(Response::new(v1::ListContainersResponse { containers: containers.collect() }))
        }

        async fn container_status(&self, request: Request<v1::ContainerStatusRequest>) -> Answer<v1::ContainerStatusResponse> {
            let found = self.books().containers.get(&request.into_inner().container_id).cloned();
            let (_, status) = found.ok_or_else(|| Status::not_found("no such container"))?;
            Ok(Response::new(v1::ContainerStatusResponse { status: Some(status), ..Default::default() }))
        }

        async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Items<v1::ContainerEventResponse>> {
            let receiver = self.0.events.subscribe();
            let events = futures::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.ok().map(|event| (Ok(event), receiver))
            });
            Ok(Response::new(Box::pin(events)))
        }
    }

    update_container_resources UpdateContainerResourcesRequest UpdateContainerResourcesResponse;
    reopen_container_log ReopenContainerLogRequest ReopenContainerLogResponse;
    exec_sync ExecSyncRequest ExecSyncResponse;
    exec ExecRequest ExecResponse;
    attach AttachRequest AttachResponse;
    port_forward PortForwardRequest PortForwardResponse;
    container_stats ContainerStatsRequest ContainerStatsResponse;
    list_container_stats ListContainerStatsRequest ListContainerStatsResponse;
    pod_sandbox_stats PodSandboxStatsRequest PodSandboxStatsResponse;
    list_pod_sandbox_stats ListPodSandboxStatsRequest ListPodSandboxStatsResponse;
    update_runtime_config UpdateRuntimeConfigRequest UpdateRuntimeConfigResponse;
    checkpoint_container CheckpointContainerRequest CheckpointContainerResponse;
    checkpoint_pod CheckpointPodRequest CheckpointPodResponse;
    restore_pod RestorePodRequest RestorePodResponse;
    list_metric_descriptors ListMetricDescriptorsRequest ListMetricDescriptorsResponse;
    list_pod_sandbox_metrics ListPodSandboxMetricsRequest ListPodSandboxMetricsResponse;
    runtime_config RuntimeConfigRequest RuntimeConfigResponse;
    update_pod_sandbox_resources UpdatePodSandboxResourcesRequest UpdatePodSandboxResourcesResponse;
}

#[tonic::async_trait]
impl ImageService for FakeRuntime {
    type StreamImagesStream = NoImages;

    async fn stream_images(&self, _: Request<v1::StreamImagesRequest>) -> Answer<NoImages> {
        Err(Status::unimplemented(""))
    }

    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse::default()))
    }

    /// Every image is there.
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let image =
            v1::Image { id: format!("sha256:{name}"), repo_tags: vec![name], ..Default::default() };
        Ok(Response::new(v1::ImageStatusResponse { image: Some(image), ..Default::default() }))
    }

    async fn pull_image(&self, _: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        Err(Status::unavailable("there is no registry"))
    }

    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        Ok(Response::new(v1::ImageFsInfoResponse::default()))
    }
}
