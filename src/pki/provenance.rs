//! What a member's own certificate says of its making: which root signed it, and which hosts it names. By the first it
//! is known to come from a root that is going, by the second to have been made for another address.

use super::certificate;
use super::{Credentials, PublicKey};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

impl Credentials {
    /// The root whose key signed the leaf, if it is among the presented and the trusted ones.
    pub fn signed_by(&self) -> Option<PublicKey> {
        let leaf = parse(self.chain().first()?)?;
        let trusted = self.trust().roots().iter().map(|root| root.der());
        let mut issuers = self.chain().iter().skip(1).chain(trusted);
        let issuer = issuers
            .find(|der| parse(der).is_some_and(|issuer| leaf.verify_signature(Some(issuer.public_key())).is_ok()))?;
        certificate::read(issuer, "root certificate").ok().map(|facts| facts.public_key)
    }

    /// The host names and addresses under which the certificate is good for other tools.
    pub fn host_names(&self) -> Vec<String> {
        let Some(leaf) = self.chain().first().and_then(parse) else { return Vec::new() };
        let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
        names.value.general_names.iter().filter_map(host).collect()
    }
}

fn parse<'c>(der: &'c CertificateDer<'_>) -> Option<X509Certificate<'c>> {
    X509Certificate::from_der(der).ok().map(|(_, parsed)| parsed)
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets).ok().map(|octets| IpAddr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(*octets).ok().map(|octets| IpAddr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authority, Bearer, Credentials, Role, SigningKey};
    use crate::model::{ClusterId, ServiceId, Timestamp};
    use std::time::Duration;

    #[test]
    fn a_certificate_knows_its_root_through_a_rotation_and_its_hosts() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let mut authority = Authority::create(ClusterId::generate(), &"prod".parse().unwrap(), now).unwrap();
        let bearer = Bearer::service(authority.cluster(), Role::Block, ServiceId::generate());
        let names = ["db-01.example", "10.0.0.1", "::1"].map(str::to_owned);
        let issue = |authority: &Authority| {
            let key = SigningKey::generate().unwrap();
            let life = Duration::from_secs(3600);
            let issued = authority.issue(&key.request().unwrap(), &bearer, &names, now, life).unwrap();
            Credentials::new(key, &issued.chain_pem, authority.trust()).unwrap()
        };
        let old = issue(&authority);
        assert_eq!(old.signed_by(), Some(authority.ca()));
        assert_eq!(old.host_names(), names);
        authority.begin_rotation(now).unwrap();
        authority.promote().unwrap();
        let new = issue(&authority);
        assert_eq!(new.signed_by(), Some(authority.ca()));
        assert_ne!(new.signed_by(), old.signed_by());
    }
}
