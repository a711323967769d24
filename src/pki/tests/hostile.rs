use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ECDSA_P384_SHA384,
    SanType,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// A key with any chain at all.
struct Forged {
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
}

impl Forged {
    fn resolver(&self) -> Arc<SingleCertAndKey> {
        let der = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        let key = provider().key_provider.load_private_key(der).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), key).into())
    }

    /// What becomes of it as a server, and as a client.
    fn meets(&self, keyring: &Keyring) -> [Outcome; 2] {
        let mut serving = (*server(keyring, Clients::Required)).clone();
        serving.cert_resolver = self.resolver();
        let mut calling = (*client(keyring, &Role::ALL)).clone();
        calling.client_auth_cert_resolver = self.resolver();
        [
            handshake(client(keyring, &Role::ALL), Arc::new(serving)),
            handshake(Arc::new(calling), server(keyring, Clients::Required)),
        ]
    }

    fn refused(&self, keyring: &Keyring, with: &str) {
        for outcome in self.meets(keyring) {
            let why = reason(outcome);
            assert!(why.contains(with), "{why}");
        }
    }
}

/// The root's certificate and key, out of the form that the store holds.
fn root(authority: &Authority) -> (CertificateDer<'static>, KeyPair) {
    let json = serde_json::to_value(authority).unwrap();
    let certificate = certificate::from_pem(json["root"]["certificate"].as_str().unwrap(), "root").unwrap().remove(0);
    (certificate, KeyPair::from_pem(json["root"]["key"].as_str().unwrap()).unwrap())
}

/// A leaf of the true root, bent by `bend`.
fn bent(stage: &Stage, bend: impl FnOnce(&mut CertificateParams)) -> Forged {
    let (certificate, key) = root(&stage.authority);
    let issuer = Issuer::from_ca_cert_der(&certificate, key).unwrap();
    let validity = certificate::Validity::starting(stage.now(), DAY);
    let mut params = certificate::leaf_params(&stage.bearer(Role::Block), &[], validity).unwrap();
    bend(&mut params);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    Forged { key, chain: vec![leaf.into(), certificate] }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn what_is_bent_below_is_good_when_it_is_left_straight() {
    let stage = Stage::new();
    let straight = bent(&stage, |_| {});
    assert!(straight.meets(&stage.keyring(Role::Manager)).iter().all(Result::is_ok));
}

#[test]
fn a_self_signed_certificate_is_refused() {
    let stage = Stage::new();
    let validity = certificate::Validity::starting(stage.now(), DAY);
    let params = certificate::leaf_params(&stage.bearer(Role::Manager), &[], validity).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = params.self_signed(&key).unwrap();
    let forged = Forged { key, chain: vec![leaf.into()] };
    forged.refused(&stage.keyring(Role::Manager), "UnknownIssuer");
}

#[test]
fn a_leaf_signs_no_other_leaf() {
    let stage = Stage::new();
    let holder = bent(&stage, |_| {});
    let issuer = Issuer::from_ca_cert_der(&holder.chain[0], &holder.key).unwrap();
    let validity = certificate::Validity::starting(stage.now(), DAY);
    let params = certificate::leaf_params(&stage.bearer(Role::Manager), &[], validity).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let chain = [vec![leaf.into()], holder.chain.clone()].concat();
    Forged { key, chain }.refused(&stage.keyring(Role::Manager), "EndEntityUsedAsCa");
}

#[test]
fn a_root_is_nobodys_own_certificate() {
    let stage = Stage::new();
    let (certificate, key) = root(&stage.authority);
    Forged { key, chain: vec![certificate] }.refused(&stage.keyring(Role::Manager), "CaUsedAsEndEntity");
}

#[test]
fn a_certificate_for_other_purposes_or_for_none_named_is_refused() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    let signing = bent(&stage, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    signing.refused(&manager, "extended key usage");
    let silent = bent(&stage, |params| params.extended_key_usages.clear());
    silent.refused(&manager, "what it may be used for");
    let serving = bent(&stage, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let [as_server, as_client] = serving.meets(&manager);
    assert!(as_server.is_ok() && reason(as_client).contains("extended key usage"));
}

#[test]
fn a_certificate_names_exactly_one_bearer() {
    let stage = Stage::new();
    let manager = stage.keyring(Role::Manager);
    let second = stage.bearer(Role::Manager).to_string();
    bent(&stage, |params| params.subject_alt_names.push(uri(&second))).refused(&manager, "holds 2 URIs");
    bent(&stage, |params| params.subject_alt_names.push(uri("https://example"))).refused(&manager, "holds 2 URIs");
    bent(&stage, |params| params.subject_alt_names.clear()).refused(&manager, "names no bearer");
    bent(&stage, |params| params.subject_alt_names = vec![uri("https://x")]).refused(&manager, "'https://x' names no");
}

#[test]
fn certificates_that_cannot_be_read_name_nobody() {
    let stage = Stage::new();
    let good = stage.issue(stage.bearer(Role::Block)).chain()[0].to_vec();
    for length in 0..good.len() {
        let cut = CertificateDer::from(good[..length].to_vec());
        assert!(matches!(peer_bearer(&[cut]), Err(PeerError::Unreadable(_))), "{length}");
    }
    let longer = CertificateDer::from([&good[..], b"\0"].concat());
    assert!(matches!(peer_bearer(&[longer]), Err(PeerError::Unreadable(_))));
}

#[test]
fn a_bundle_takes_nothing_but_self_signed_authorities() {
    let stage = Stage::new();
    let forged = bent(&stage, |_| {});
    let authority = bent(&stage, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    for der in [&forged.chain[0], &authority.chain[0]] {
        let refused = TrustBundle::from_pem(&pem(der)).unwrap_err().to_string();
        assert!(refused.contains("not a self-signed authority"), "{refused}");
    }
    assert!(TrustBundle::from_pem("").is_err() && TrustBundle::new(Vec::new()).is_err());
    let bundle = stage.authority.trust();
    assert_eq!(TrustBundle::from_pem(&bundle.to_pem()), Ok(bundle.clone()));
    let mut json = serde_json::to_value(&bundle).unwrap();
    assert_eq!(serde_json::from_value::<TrustBundle>(json.clone()).unwrap(), bundle);
    json[0]["fingerprint"] = "0".repeat(64).into();
    assert!(serde_json::from_value::<TrustBundle>(json).is_err(), "the fingerprint is checked");
}

#[test]
fn requests_that_are_no_requests_are_refused() {
    let stage = Stage::new();
    let key = SigningKey::generate().unwrap();
    let good = key.request().unwrap();
    let issue = |request: &str| {
        let issued = stage.authority.issue(request, &stage.bearer(Role::Block), &[], stage.now(), DAY);
        assert_eq!(issued.as_ref().err(), verify_request(request).as_ref().err());
        issued.map(|issued| issued.public_key)
    };
    assert_eq!(issue(&good), Ok(key.public_key()));
    for garbage in ["", "garbage", &key.to_pem(), &stage.authority.trust().to_pem(), &"x".repeat(1 << 20)] {
        assert_eq!(issue(garbage), Err(Error::RequestForm));
    }
    let der = pem::parse(&good).unwrap().into_contents();
    for length in 0..der.len() {
        assert_eq!(issue(&key::encode("CERTIFICATE REQUEST", &der[..length])), Err(Error::RequestForm), "{length}");
    }
    assert_eq!(issue(&key::encode("CERTIFICATE REQUEST", &[&der[..], b"\0"].concat())), Err(Error::RequestForm));
    let other_kind = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let request = CertificateParams::default().serialize_request(&other_kind).unwrap().pem().unwrap();
    assert_eq!(issue(&request), Err(Error::RequestKey));
}

#[test]
fn a_request_whose_signature_lies_is_refused() {
    let (mine, yours) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let point = |key: &SigningKey| key.pair().unwrap().public_key_raw().to_vec();
    let der = pem::parse(mine.request().unwrap()).unwrap().into_contents();
    let at = der.windows(65).position(|window| window == point(&mine)).unwrap();
    let mut stolen = der.clone();
    stolen[at..at + 65].copy_from_slice(&point(&yours));
    let lying = verify_request(&key::encode("CERTIFICATE REQUEST", &stolen));
    assert_eq!(lying, Err(Error::RequestSignature), "my signature does not prove your key");
    // Whatever single bit is turned, no other key comes out proven.
    for bit in 0..der.len() * 8 {
        let mut turned = der.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        let proven = verify_request(&key::encode("CERTIFICATE REQUEST", &turned));
        assert!(proven.is_err() || proven == Ok(mine.public_key()), "bit {bit}");
    }
}

#[test]
fn wishes_in_a_request_are_ignored() {
    let stage = Stage::new();
    let key = KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::new(["evil.example".to_owned()]).unwrap();
    wishes.subject_alt_names.push(uri(&stage.bearer(Role::Admin).to_string()));
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    let request = wishes.serialize_request(&key).unwrap().pem().unwrap();
    let bearer = stage.bearer(Role::Data);
    let issued = stage.authority.issue(&request, &bearer, &[], stage.now(), DAY).unwrap();
    let leaf = certificate::from_pem(&issued.chain_pem, "leaf").unwrap().remove(0);
    assert_eq!(peer_bearer(std::slice::from_ref(&leaf)), Ok(bearer));
    assert!(!certificate::read(&leaf, "leaf").unwrap().authority);
    assert!(!leaf.windows(12).any(|window| window == b"evil.example"));
    assert_eq!(issued.public_key, PublicKey::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&key)));
}

#[test]
fn a_certificate_is_issued_within_the_authoritys_bounds_only() {
    let stage = Stage::new();
    let request = SigningKey::generate().unwrap().request().unwrap();
    let issue = |bearer: &Bearer, names: &[&str], lifetime| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        stage.authority.issue(&request, bearer, &names, stage.now(), lifetime).map(|_| ())
    };
    let block = stage.bearer(Role::Block);
    assert_eq!(issue(&block, &["a.example.", "a.example", "::1", "10.0.0.1", "under_score"], DAY), Ok(()));
    for bad in ["", "*.example", "a b", "fe80::1%eth0", "10.0.0.0/8", "a\nb", "bücher.example"] {
        assert_eq!(issue(&block, &[bad], DAY), Err(Error::HostName { name: bad.into() }), "{bad}");
    }
    assert!(matches!(issue(&block, &["a"; 65], DAY), Err(Error::TooManyNames { given: 65, .. })));
    assert_eq!(issue(&block, &[], Duration::from_millis(999)), Err(Error::Lifetime));
    let foreign = Bearer { cluster: ClusterId::generate(), ..block };
    assert!(matches!(issue(&foreign, &[], DAY), Err(Error::ForeignBearer { .. })));
}

#[test]
fn two_certificates_for_one_key_have_different_serial_numbers() {
    let stage = Stage::new();
    let request = SigningKey::generate().unwrap().request().unwrap();
    let bearer = stage.bearer(Role::Block);
    let issue = || stage.authority.issue(&request, &bearer, &[], stage.now(), DAY).unwrap().chain_pem;
    let serial = |chain: String| {
        use x509_parser::prelude::FromDer;
        let leaf = certificate::from_pem(&chain, "leaf").unwrap().remove(0);
        x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap().1.raw_serial().to_vec()
    };
    let (first, second) = (serial(issue()), serial(issue()));
    assert!(first != second && first.len() == 16 && first[0] & 0x80 == 0, "{first:?} {second:?}");
}

#[test]
fn nothing_that_is_printed_for_debugging_holds_a_key_or_a_secret() {
    let mut stage = Stage::new();
    stage.authority.begin_rotation(stage.now()).unwrap();
    let credentials = stage.issue(stage.bearer(Role::Block));
    let keyring = stage.keyring_of(credentials.clone());
    let text = format!("{:?} {credentials:?} {keyring:?} {:?}", stage.authority, credentials.key());
    let json = serde_json::to_value(&stage.authority).unwrap();
    let texts = [&json["root"]["key"], &json["rotation"]["root"]["key"]].map(|key| key.as_str().unwrap().to_owned());
    for key in texts.into_iter().chain([String::clone(&credentials.key().to_pem())]) {
        let der = pem::parse(&key).unwrap().into_contents();
        assert!(!text.contains("PRIVATE") && !text.contains(key.lines().nth(1).unwrap()));
        assert!(!text.contains(&format!("{der:?}")) && !text.contains(&key::hex(&der)));
    }
}

#[test]
fn stored_credentials_and_authorities_are_checked_when_they_are_read() {
    let stage = Stage::new();
    let credentials = stage.issue(stage.bearer(Role::Block));
    let mut json = serde_json::to_value(&credentials).unwrap();
    let back: Credentials = serde_json::from_value(json.clone()).unwrap();
    assert_eq!((back.bearer(), back.chain_pem()), (credentials.bearer(), credentials.chain_pem()));
    let other = SigningKey::generate().unwrap();
    json["key"] = serde_json::to_value(&other).unwrap();
    assert!(serde_json::from_value::<Credentials>(json).unwrap_err().to_string().contains("for another key"));
    let mut json = serde_json::to_value(&stage.authority).unwrap();
    json["root"]["key"] = serde_json::to_value(&other).unwrap();
    assert!(serde_json::from_value::<Authority>(json).unwrap_err().to_string().contains("for another key"));
}
