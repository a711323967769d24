//! What this service hands out of the images that it keeps: to block services that make volumes of them, and to operators.
//! And of volumes that are being moved, to those that they are moved to.

use super::face::Face;
use super::serve::Stage;
use super::worker::Content;
use crate::image::{Part, Sum};
use crate::model::VolumeId;
use crate::rpc::proto;
use proto::image_piece::Piece as Wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Pieces that wait for a slow reader.
const WAITING: usize = 4;

#[tonic::async_trait]
impl proto::images_server::Images for Face {
    type ReadImageStream = ReceiverStream<Result<proto::ImagePiece, Status>>;

    async fn read_image(
        &self,
        request: Request<proto::ReadImageRequest>,
    ) -> Result<Response<Self::ReadImageStream>, Status> {
        let text = request.into_inner().volume;
        let base: VolumeId = text.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let missing = || Status::not_found(format!("volume {base} keeps no image here, and is not being moved"));
        let Stage::Member(active) = self.0.stage() else { return Err(missing()) };
        let (sender, receiver) = mpsc::channel(WAITING);
        let (content, tells) = active.worker.content_of(base).ok_or_else(missing)?.map_err(Status::unavailable)?;
        let turn = self.0.supplies.clone().try_acquire_owned();
        let turn =
            turn.map_err(|_| Status::resource_exhausted("too many read images and volumes here now: try again later"))?;
        // Detached: it ends with its reader, and only reads.
        drop(tokio::task::spawn_blocking(move || {
            send(content, tells, &sender);
            drop(turn);
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Until all is sent, something fails, or nobody listens. `tells`: what it came to is said at its end.
fn send(content: Content, tells: bool, sender: &mpsc::Sender<Result<proto::ImagePiece, Status>>) {
    let mut sum = Sum::default();
    for piece in content {
        if let Some(piece) = piece.as_ref().ok().filter(|_| tells) {
            sum.add(piece);
        }
        let piece = piece.map(|piece| match piece {
            Part::Data(data) => Wire::Data(data),
            Part::Zeros(length) => Wire::Zeros(length),
        });
        let message = match piece {
            Ok(piece) => Ok(proto::ImagePiece { piece: Some(piece) }),
            Err(error) => Err(Status::data_loss(format!("reading what is sent: {error}"))),
        };
        let failed = message.is_err();
        if sender.blocking_send(message).is_err() || failed {
            return;
        }
    }
    let last = proto::ImagePiece { piece: Some(Wire::Sha256(sum.digest().to_string())) };
    if tells && sender.blocking_send(Ok(last)).is_err() {
        tracing::debug!("nobody listens any more for what a volume came to");
    }
}
