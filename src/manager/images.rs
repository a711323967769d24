//! Imports, as `ctl` asks for them: thin translations between gRPC and plans.

use super::draft::Draft;
use super::member::Member;
use super::plan;
use crate::model::*;
use crate::rpc::{Caller, Fault, FaultKind, Malformed, proto};
use tonic::Status;

fn invalid(error: &impl std::fmt::Display) -> Status {
    Fault::new(FaultKind::Invalid, error.to_string()).into()
}

fn malformed(error: Malformed) -> Status {
    Fault::from(error).into()
}

pub async fn import(
    member: &Member,
    author: Author,
    caller: &Caller,
    request: proto::ImportImageRequest,
) -> Result<proto::ImportImageResponse, Status> {
    let format = proto::ImageFormat::try_from(request.format).map_err(Malformed::from);
    let format = format.and_then(ImageFormat::try_from).map_err(malformed)?;
    // Who is let in by a certificate needs leave to write; local peers need none.
    let writer = match caller {
        Caller::Certified(bearer) if !bearer.role.is_service() => {
            Some((ClientId::from_bytes(bearer.id.into_bytes()), AttachmentId::generate()))
        }
        Caller::Certified(_) | Caller::Local { .. } | Caller::Anonymous | Caller::Refused(_) => None,
    };
    let wanted = plan::WantedImage {
        id: ImageId::generate(),
        base: VolumeId::generate(),
        name: request.name.parse().map_err(|error: NameError| invalid(&error))?,
        size: ByteSize::bytes(request.size),
        format,
        pool: (!request.pool.is_empty()).then_some(request.pool),
        writer,
    };
    let plan = move |draft: &mut Draft<'_>| plan::import_image(draft, &author, &wanted);
    let (image, base) = member.writer.write(plan).await?;
    let (image, base) = ((&Object::Image(image)).into(), (&Object::Volume(base)).into());
    Ok(proto::ImportImageResponse { image: Some(image), base: Some(base) })
}

pub async fn record_upload(member: &Member, request: proto::RecordUploadRequest) -> Result<proto::Object, Status> {
    let proto::RecordUploadRequest { image, upload, bytes, sha256 } = request;
    let uploaded = match bytes {
        0 => None,
        bytes => {
            let sha256 = sha256.parse().map_err(|error: DigestError| invalid(&error))?;
            Some(Uploaded { bytes: ByteSize::bytes(bytes), sha256 })
        }
    };
    let plan = move |draft: &mut Draft<'_>| plan::record_upload(draft, &image, upload, uploaded);
    let image = member.writer.write(plan).await?;
    Ok((&Object::Image(image)).into())
}

pub async fn seal(member: &Member, author: Author, request: proto::SealImageRequest) -> Result<proto::Object, Status> {
    let proto::SealImageRequest { image, upload, sha256 } = request;
    let sha256 = sha256.parse().map_err(|error: DigestError| invalid(&error))?;
    let plan = move |draft: &mut Draft<'_>| plan::seal_image(draft, &author, &image, upload, sha256);
    let image = member.writer.write(plan).await?;
    Ok((&Object::Image(image)).into())
}
