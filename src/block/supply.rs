//! What this service hands out of the images that it keeps: to block services that make volumes of them, and to operators.

use super::face::Face;
use super::serve::Stage;
use super::worker::Content;
use crate::image::Part;
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
        let missing = || Status::not_found(format!("volume {base} keeps no image here"));
        let Stage::Member(active) = self.0.stage() else { return Err(missing()) };
        let (sender, receiver) = mpsc::channel(WAITING);
        let content = active.worker.content_of(base).ok_or_else(missing)?.map_err(Status::unavailable)?;
        let turn = self.0.supplies.clone().try_acquire_owned();
        let turn = turn.map_err(|_| Status::resource_exhausted("too many read images here now: try again later"))?;
        // Detached: it ends with its reader, and only reads.
        drop(tokio::task::spawn_blocking(move || {
            send(content, &sender);
            drop(turn);
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Until all is sent, something fails, or nobody listens.
fn send(content: Content, sender: &mpsc::Sender<Result<proto::ImagePiece, Status>>) {
    for piece in content {
        let piece = piece.map(|piece| match piece {
            Part::Data(data) => Wire::Data(data),
            Part::Zeros(length) => Wire::Zeros(length),
        });
        let message = match piece {
            Ok(piece) => Ok(proto::ImagePiece { piece: Some(piece) }),
            Err(error) => Err(Status::data_loss(format!("reading what keeps the image: {error}"))),
        };
        let failed = message.is_err();
        if sender.blocking_send(message).is_err() || failed {
            return;
        }
    }
}
