//! How the volumes of this block service are used, for whoever may look: the counts of now, again and again.

use super::face::Face;
use super::serve::{Active, Stage};
use crate::model::{Timestamp, VolumeFigures, VolumeId};
use crate::rpc::{Fault, FaultKind, proto};
use crate::runtime::{Clock, SystemClock};
use proto::figures_server::Figures;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The shortest and the longest pause between two looks, in milliseconds.
const PERIODS_MS: RangeInclusive<u64> = 100..=3_600_000;

type Answer = Result<proto::FiguresResponse, Status>;

#[tonic::async_trait]
impl Figures for Face {
    type WatchFiguresStream = ReceiverStream<Answer>;

    async fn watch_figures(
        &self,
        request: Request<proto::WatchFiguresRequest>,
    ) -> Result<Response<Self::WatchFiguresStream>, Status> {
        let Stage::Member(active) = self.0.stage() else {
            let message =
                "this block service is no member of a cluster and serves no volumes: `symphony ctl block init`";
            return Err(Fault::new(FaultKind::Precondition, message).into());
        };
        let proto::WatchFiguresRequest { volumes, period_ms } = request.into_inner();
        let wanted = resolve(&volumes, &look(&active).await?)?;
        let period = Duration::from_millis(period_ms.clamp(*PERIODS_MS.start(), *PERIODS_MS.end()));
        let (sender, receiver) = mpsc::channel(1);
        self.0.shutdown.spawn_until_end(tell(active, wanted, period, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The ids of the volumes that are meant; none if all are.
fn resolve(references: &[String], served: &[VolumeFigures]) -> Result<Option<BTreeSet<VolumeId>>, Fault> {
    if references.is_empty() {
        return Ok(None);
    }
    let find = |reference: &String| {
        let meant = |volume: &&VolumeFigures| {
            volume.name.as_str() == reference || reference.parse::<VolumeId>().is_ok_and(|id| id == volume.id)
        };
        let missing = || {
            let reference: String = reference.chars().take(80).collect();
            let message = format!(
                "this block service serves no volume '{reference}': `symphony ctl volume get {reference}` on a manager \
                 says where it is and how it stands"
            );
            Fault::new(FaultKind::NotFound, message)
        };
        served.iter().find(meant).map(|volume| volume.id).ok_or_else(missing)
    };
    references.iter().map(find).collect::<Result<_, _>>().map(Some)
}

/// Adding up many volumes takes a while, so a thread of its own does.
async fn look(active: &Arc<Active>) -> Result<Vec<VolumeFigures>, Status> {
    let worker = active.worker.clone();
    let looked = tokio::task::spawn_blocking(move || worker.figures()).await;
    looked.map_err(|error| Status::internal(format!("the figures could not be added up: {error}")))
}

async fn tell(active: Arc<Active>, wanted: Option<BTreeSet<VolumeId>>, period: Duration, sender: mpsc::Sender<Answer>) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = sender.closed() => return,
        }
        let answer = look(&active).await.map(|mut volumes| {
            volumes.retain(|volume| wanted.as_ref().is_none_or(|wanted| wanted.contains(&volume.id)));
            volumes
        });
        let over = wanted.is_some() && answer.as_ref().is_ok_and(Vec::is_empty) || answer.is_err();
        let answer = answer.map(|volumes| response(SystemClock.wall(), &volumes));
        if sender.send(answer).await.is_err() || over {
            return;
        }
    }
}

fn response(at: Timestamp, volumes: &[VolumeFigures]) -> proto::FiguresResponse {
    proto::FiguresResponse { at: at.as_millis(), volumes: volumes.iter().map(Into::into).collect() }
}
