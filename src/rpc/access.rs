//! Clients, tokens, attachments and events between their model and their protobuf form.

use super::objects::{enumerated, number, required};
use super::{Malformed, proto};
use crate::model::*;

impl From<&CertificateRecord> for proto::CertificateRecord {
    fn from(record: &CertificateRecord) -> Self {
        Self {
            public_key: record.public_key.clone(),
            expires_at: record.expires_at.as_millis(),
            root: record.root.clone(),
            names: record.names.iter().cloned().collect(),
        }
    }
}

impl From<proto::CertificateRecord> for CertificateRecord {
    fn from(record: proto::CertificateRecord) -> Self {
        Self {
            public_key: record.public_key,
            expires_at: Timestamp::from_millis(record.expires_at),
            root: record.root,
            names: record.names.into_iter().collect(),
        }
    }
}

impl From<&Attachment> for proto::Attachment {
    fn from(attachment: &Attachment) -> Self {
        let (spec, status) = (&attachment.spec, &attachment.status);
        Self {
            meta: Some((&attachment.meta).into()),
            spec: Some(proto::AttachmentSpec {
                volume: spec.volume.to_string(),
                volume_name: spec.volume_name.to_string(),
                client: spec.client.to_string(),
                client_name: spec.client_name.to_string(),
                read_only: spec.read_only,
                shared: spec.shared,
            }),
            status: Some(proto::AttachmentStatus {
                phase: number::<proto::Phase>(status.phase),
                observed_generation: status.observed_generation.as_u64(),
                placement: status.placement.iter().map(ToString::to_string).collect(),
                message: status.message.clone(),
            }),
        }
    }
}

impl TryFrom<proto::Attachment> for Attachment {
    type Error = Malformed;

    fn try_from(attachment: proto::Attachment) -> Result<Self, Malformed> {
        let spec = required(attachment.spec, "an attachment's spec")?;
        let status = required(attachment.status, "an attachment's status")?;
        Ok(Self {
            meta: required(attachment.meta, "an attachment's meta")?.try_into()?,
            spec: AttachmentSpec {
                volume: spec.volume.parse()?,
                volume_name: spec.volume_name.parse()?,
                client: spec.client.parse()?,
                client_name: spec.client_name.parse()?,
                read_only: spec.read_only,
                shared: spec.shared,
            },
            status: AttachmentStatus {
                phase: enumerated::<proto::Phase, _>(status.phase)?,
                observed_generation: Generation::new(status.observed_generation),
                placement: status.placement.iter().map(|id| id.parse()).collect::<Result<_, _>>()?,
                message: status.message,
            },
        })
    }
}

impl From<&Client> for proto::Client {
    fn from(client: &Client) -> Self {
        Self {
            meta: Some((&client.meta).into()),
            spec: Some(proto::ClientSpec { role: number::<proto::ClientRole>(client.spec.role) }),
            status: Some(proto::ClientStatus { certificate: Some((&client.status.certificate).into()) }),
        }
    }
}

impl TryFrom<proto::Client> for Client {
    type Error = Malformed;

    fn try_from(client: proto::Client) -> Result<Self, Malformed> {
        let spec = required(client.spec, "a client's spec")?;
        let status = required(client.status, "a client's status")?;
        Ok(Self {
            meta: required(client.meta, "a client's meta")?.try_into()?,
            spec: ClientSpec { role: enumerated::<proto::ClientRole, _>(spec.role)? },
            status: ClientStatus { certificate: required(status.certificate, "a client's certificate")?.into() },
        })
    }
}

/// Without the hash of its secret, which stays in the store.
impl From<&Token> for proto::Token {
    fn from(token: &Token) -> Self {
        Self {
            meta: Some((&token.meta).into()),
            spec: Some(proto::TokenSpec {
                r#type: number::<proto::ServiceType>(token.spec.service_type),
                expires_at: token.spec.expires_at.as_millis(),
                uses: token.spec.uses,
            }),
            status: Some(proto::TokenStatus { used: token.status.used }),
        }
    }
}

impl TryFrom<proto::Token> for Token {
    type Error = Malformed;

    fn try_from(token: proto::Token) -> Result<Self, Malformed> {
        let spec = required(token.spec, "a token's spec")?;
        let status = required(token.status, "a token's status")?;
        Ok(Self {
            meta: required(token.meta, "a token's meta")?.try_into()?,
            spec: TokenSpec {
                service_type: enumerated::<proto::ServiceType, _>(spec.r#type)?,
                expires_at: Timestamp::from_millis(spec.expires_at),
                uses: spec.uses,
            },
            status: TokenStatus { used: status.used, secret_hash: None },
        })
    }
}

impl From<&Event> for proto::Event {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id.to_string(),
            at: event.at.as_millis(),
            who: event.author.who.clone(),
            origin: event.author.origin.clone(),
            action: event.action.clone(),
            kind: event.kind.map_or(0, number::<proto::Kind>),
            object: event.object.clone(),
            name: event.name.clone(),
            detail: event.detail.clone(),
        }
    }
}

impl TryFrom<proto::Event> for Event {
    type Error = Malformed;

    fn try_from(event: proto::Event) -> Result<Self, Malformed> {
        Ok(Self {
            id: event.id.parse()?,
            at: Timestamp::from_millis(event.at),
            author: Author { who: event.who, origin: event.origin },
            action: event.action,
            kind: (event.kind != 0).then(|| enumerated::<proto::Kind, _>(event.kind)).transpose()?,
            object: event.object,
            name: event.name,
            detail: event.detail,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_tokens_attachments_and_events_survive_the_wire() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let certificate = CertificateRecord {
            public_key: "ab".into(),
            expires_at: now,
            root: "cd".into(),
            names: Default::default(),
        };
        let client_id = ClientId::from_bytes([1; 16]);
        let client = Client::new(Meta::new(client_id, "ops".parse().unwrap(), now), ClientRole::Viewer, certificate);
        assert_eq!(Client::try_from(proto::Client::from(&client)), Ok(client));

        let spec = TokenSpec { service_type: ServiceType::Block, expires_at: now, uses: 3 };
        let status = TokenStatus { used: 1, secret_hash: Some("ef".into()) };
        let token = Token { meta: Meta::new(TokenId::from_bytes([2; 16]), "t".parse().unwrap(), now), spec, status };
        let seen = Token::try_from(proto::Token::from(&token)).unwrap();
        assert_eq!(seen.status, TokenStatus { used: 1, secret_hash: None }, "the hash stays in the store");
        assert_eq!((seen.meta, seen.spec), (token.meta, token.spec));

        let spec = AttachmentSpec {
            volume: VolumeId::from_bytes([3; 16]),
            volume_name: "v".parse().unwrap(),
            client: client_id,
            client_name: "ops".parse().unwrap(),
            read_only: true,
            shared: true,
        };
        let meta = Meta::new(AttachmentId::from_bytes([4; 16]), "a".parse().unwrap(), now);
        let attachment = Attachment::new(meta, spec, vec![ServiceId::from_bytes([5; 16])]);
        assert_eq!(Attachment::try_from(proto::Attachment::from(&attachment)), Ok(attachment));

        let event = Event {
            id: EventId::from_bytes([6; 16]),
            at: now,
            author: Author { who: "local root".into(), origin: "the control socket".into() },
            action: "volume.create".into(),
            kind: Some(Kind::Volume),
            object: "id".into(),
            name: "v".into(),
            detail: None,
        };
        assert_eq!(Event::try_from(proto::Event::from(&event)), Ok(event));
    }
}
