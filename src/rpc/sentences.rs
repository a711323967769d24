//! What is wrong with a TLS connection, in words for the user who dialled.
//!
//! A server says why it refuses a certificate in one byte, the alert (RFC 8446 section 6.2); the reasons on our own side
//! have their own words already.

use rustls::{AlertDescription, CertificateError, Error};
use std::io;

/// Whose doing it is that a TLS connection does not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The peer speaks something else.
    NotTls,
    /// We do not accept the server.
    Server(String),
    /// The server does not accept us.
    Client(String),
    /// The server has nothing to show yet: it is starting, or nobody has made it a member.
    Bare,
    /// Neither; the connection broke.
    Broken,
}

/// What the error of a handshake, or of the first read behind it, means.
pub(super) fn trouble(error: &io::Error) -> Trouble {
    let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else { return Trouble::Broken };
    match inner {
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => Trouble::NotTls,
        Error::InvalidCertificate(reason) => Trouble::Server(of_server(reason)),
        Error::AlertReceived(alert) => of_alert(*alert),
        other => Trouble::Server(other.to_string()),
    }
}

fn of_server(reason: &CertificateError) -> String {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: check the clocks of both hosts, then the server's log".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: check the clocks of both hosts".into()
        }
        CertificateError::UnknownIssuer => {
            "its certificate comes from no root that is trusted here: it belongs to another cluster, or the roots were \
             exchanged and what is trusted here is too old"
                .into()
        }
        CertificateError::BadSignature => "its certificate is forged: a signature does not fit".into(),
        CertificateError::Revoked => "its certificate was revoked: it was removed from the cluster".into(),
        CertificateError::Other(reason) => reason.to_string(),
        other => format!("its certificate is not acceptable: {other}"),
    }
}

fn of_alert(alert: AlertDescription) -> Trouble {
    let refusal = match alert {
        AlertDescription::CertificateExpired => {
            "the certificate shown to it has expired or is not valid yet: check the clocks, or get a new one"
        }
        AlertDescription::CertificateRevoked => {
            "the certificate shown to it was revoked: its bearer was removed from the cluster"
        }
        AlertDescription::UnknownCA => {
            "the certificate shown to it comes from no root that it trusts: it is that of another cluster"
        }
        AlertDescription::DecryptError => "the certificate shown to it, or its signature, is forged",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => {
            "the certificate shown to it is not one of its cluster, or not meant for this; its log says more"
        }
        AlertDescription::CertificateRequired => "it asks for a certificate, and none that is valid could be shown",
        AlertDescription::AccessDenied => return Trouble::Bare,
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            return Trouble::Server("it does not speak TLS 1.3 with the ciphers that symphony uses".into());
        }
        AlertDescription::NoApplicationProtocol => {
            return Trouble::Server("it speaks TLS, but no gRPC: is this the port of a manager?".into());
        }
        other => return Trouble::Server(format!("it broke off the handshake ({other:?})")),
    };
    Trouble::Client(refusal.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: Error) -> Trouble {
        trouble(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn every_refusal_of_a_certificate_says_which_side_refused_and_why() {
        let Trouble::Client(text) = of(Error::AlertReceived(AlertDescription::CertificateRevoked)) else { panic!() };
        assert!(text.contains("was revoked"), "{text}");
        let Trouble::Server(text) = of(Error::InvalidCertificate(CertificateError::UnknownIssuer)) else { panic!() };
        assert!(text.contains("another cluster"), "{text}");
        assert_eq!(of(Error::AlertReceived(AlertDescription::AccessDenied)), Trouble::Bare);
        assert_eq!(of(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)), Trouble::NotTls);
        assert_eq!(trouble(&io::ErrorKind::UnexpectedEof.into()), Trouble::Broken);
    }
}
