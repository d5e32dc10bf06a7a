//! The service: translates a request, has the [`Keeper`] do it where it may block, and translates the answer.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::api::snapshots as api;
use crate::api::snapshots::snapshots_server::Snapshots;
use crate::filter::Filter;
use crate::keeper::Keeper;

/// How many snapshots one message of a list holds.
const BATCH: usize = 100;

/// containerd's snapshot service.
pub(crate) struct Service {
    keeper: Arc<Keeper>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub(crate) fn new(keeper: Arc<Keeper>) -> Self {
        Service { keeper }
    }

    /// Runs what reads and writes the disk on a thread of its own.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Keeper) -> Result<T, Status> + Send + 'static,
    ) -> Answer<T> {
        let keeper = Arc::clone(&self.keeper);
        let done = tokio::task::spawn_blocking(move || work(&keeper)).await;
        done.unwrap_or_else(|_| Err(Status::internal("a request failed; see the log"))).map(Response::new)
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(&self, request: Request<api::PrepareSnapshotRequest>) -> Answer<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        self.run(move |keeper| {
            let mounts = keeper.prepare(&key, &parent, labels.into_iter().collect())?;
            Ok(api::PrepareSnapshotResponse { mounts })
        })
        .await
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        self.run(move |keeper| {
            let mounts = keeper.view(&key, &parent, labels.into_iter().collect())?;
            Ok(api::ViewSnapshotResponse { mounts })
        })
        .await
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let key = request.into_inner().key;
        self.run(move |keeper| Ok(api::MountsResponse { mounts: keeper.mounts(&key)? })).await
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        self.run(move |keeper| keeper.commit(&name, &key, labels.into_iter().collect())).await
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.run(move |keeper| keeper.remove(&key)).await
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let key = request.into_inner().key;
        self.run(move |keeper| Ok(api::StatSnapshotResponse { info: Some(keeper.stat(&key)?) })).await
    }

    async fn update(&self, request: Request<api::UpdateSnapshotRequest>) -> Answer<api::UpdateSnapshotResponse> {
        let api::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = info.ok_or_else(|| Status::invalid_argument("update: no snapshot is named"))?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        self.run(move |keeper| {
            let info = keeper.update(&info.name, info.labels.into_iter().collect(), &paths)?;
            Ok(api::UpdateSnapshotResponse { info: Some(info) })
        })
        .await
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let found = self.run(move |keeper| keeper.list(&Filter::parse_all(&filters)?)).await?;
        let batches: Vec<_> = found
            .into_inner()
            .chunks(BATCH)
            .map(|batch| Ok(api::ListSnapshotsResponse { info: batch.to_vec() }))
            .collect();
        Ok(Response::new(tokio_stream::iter(batches)))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let key = request.into_inner().key;
        self.run(move |keeper| keeper.usage(&key)).await
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Answer<()> {
        self.run(Keeper::cleanup).await
    }
}
