//! The cluster's certificate authority: its root, and the exchange of that root for a new one.
//!
//! ```text
//!              begin_rotation              promote              finish_rotation
//!   stable ──────────────────▶ distributing ──────▶ reissuing ──────────────────▶ stable
//!   trust: 1                   trust: 1, 2          trust: 2, 1                   trust: 2
//!   leaves from 1              leaves from 1        leaves from 2,                leaves from 2
//!                                                   cross certificate 1 → 2
//! ```
//!
//! Go on from *distributing* once the services were sent both roots, and from *reissuing* once every one of them has a
//! leaf of root 2. A service that missed the first step still verifies leaves of root 2 by the cross certificate. A step
//! that was already made is [`Step::Unchanged`]; a step out of turn is refused. The cross certificate travels on after the end,
//! for those who come late, until the next exchange.

use super::certificate::{self, Validity};
use super::{Bearer, Error, PublicKey, SigningKey, TrustBundle, TrustedRoot, key};
use crate::model::{ClusterId, Name, Timestamp};
use rcgen::Issuer;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a root lasts: ten years, leap days included.
const ROOT_LIFETIME: Duration = Duration::from_secs(3652 * 24 * 3600);

/// The authority as managers keep it in the store. Its JSON form holds the private keys; its Debug form does not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Authority {
    cluster: ClusterId,
    name: Name,
    root: Root,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotation: Option<Rotation>,
    /// The root before this one, without its key: nobody believes its leaves any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<Former>,
}

/// What lets those verify a leaf who have missed the exchange, or hold a token from before it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Former {
    root: TrustedRoot,
    /// The key of the present root, signed by that one; PEM.
    cross_certificate: String,
}

/// A root with its key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "UncheckedRoot")]
struct Root {
    #[serde(flatten)]
    trusted: TrustedRoot,
    key: SigningKey,
}

#[derive(Deserialize)]
struct UncheckedRoot {
    #[serde(flatten)]
    trusted: TrustedRoot,
    key: SigningKey,
}

impl TryFrom<UncheckedRoot> for Root {
    type Error = Error;

    fn try_from(root: UncheckedRoot) -> Result<Self, Error> {
        match root.trusted.public_key() == root.key.public_key() {
            true => Ok(Self { trusted: root.trusted, key: root.key }),
            false => Err(Error::KeyMismatch { what: "root certificate" }),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Rotation {
    phase: RotationPhase,
    started_at: Timestamp,
    /// Root 2.
    root: Root,
    /// The key of root 2, signed by root 1; PEM.
    cross_certificate: String,
}

/// How far the exchange of roots has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationPhase {
    /// Services learn to believe root 2; leaves still come from root 1.
    Distributing,
    /// Leaves come from root 2; those of root 1 are still believed.
    Reissuing,
}

/// What a step of the rotation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Done,
    /// It had been done before.
    Unchanged,
}

/// A certificate just issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf, the cross certificate where there is one, and every root that is believed.
    pub chain_pem: String,
    pub not_before: Timestamp,
    pub expires_at: Timestamp,
    /// The key that was certified, as the request proved it.
    pub public_key: PublicKey,
}

impl Root {
    fn create(name: &Name, now: Timestamp) -> Result<Self, Error> {
        let key = SigningKey::generate()?;
        let params = certificate::root_params(name, Validity::starting(now, ROOT_LIFETIME))?;
        let signed = params.self_signed(&key.pair()?).map_err(Error::signing)?;
        Ok(Self { trusted: TrustedRoot::from_der(signed.into())?, key })
    }

    fn issuer(&self) -> Result<Issuer<'static, rcgen::KeyPair>, Error> {
        Issuer::from_ca_cert_der(self.trusted.der(), self.key.pair()?).map_err(Error::signing)
    }

    /// The root's own validity; an error if it is past at `now`.
    fn validity(&self, now: Timestamp) -> Result<Validity, Error> {
        let validity = self.trusted.validity();
        match validity.not_after > now {
            true => Ok(validity),
            false => Err(Error::RootExpired { expired: validity.not_after }),
        }
    }
}

impl Authority {
    /// A new authority with a new root.
    pub fn create(cluster: ClusterId, name: &Name, now: Timestamp) -> Result<Self, Error> {
        Ok(Self { cluster, name: name.clone(), root: Root::create(name, now)?, rotation: None, former: None })
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The fingerprint of the root that leaves come from now; what join tokens carry.
    pub fn ca(&self) -> PublicKey {
        self.issuing().trusted.public_key()
    }

    /// None while one root is all there is.
    pub fn rotation(&self) -> Option<RotationPhase> {
        self.rotation.as_ref().map(|rotation| rotation.phase)
    }

    /// What services are to believe now, the issuing root first.
    pub fn trust(&self) -> TrustBundle {
        let trusted = |root: &Root| root.trusted.clone();
        match &self.rotation {
            None => TrustBundle::of(trusted(&self.root), None),
            Some(rotation) => match rotation.phase {
                RotationPhase::Distributing => TrustBundle::of(trusted(&self.root), Some(trusted(&rotation.root))),
                RotationPhase::Reissuing => TrustBundle::of(trusted(&rotation.root), Some(trusted(&self.root))),
            },
        }
    }

    /// Issues a certificate to `bearer` for the key that `request` proves; every other wish in the request is ignored.
    ///
    /// `names` are the host names and addresses under which other tools (qemu, libnbd) reach the bearer. The certificate
    /// is valid from a few minutes before `now`, for `lifetime`, and never outlives its root.
    pub fn issue(
        &self,
        request: &str,
        bearer: &Bearer,
        names: &[String],
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Issued, Error> {
        if bearer.cluster != self.cluster {
            return Err(Error::ForeignBearer { theirs: bearer.cluster, ours: self.cluster });
        }
        if lifetime < Duration::from_secs(1) {
            return Err(Error::Lifetime);
        }
        let proven = key::prove(request)?;
        let root = self.issuing();
        let validity = Validity::starting(now, lifetime).within(root.validity(now)?);
        let params = certificate::leaf_params(bearer, names, validity)?;
        let leaf = params.signed_by(&proven.spki, &root.issuer()?).map_err(Error::signing)?;
        Ok(Issued {
            chain_pem: certificate::to_pem(leaf.der()) + &self.above_leaf(),
            not_before: validity.not_before,
            expires_at: validity.not_after,
            public_key: proven.name,
        })
    }

    /// Makes root 2 and the cross certificate: stable → distributing.
    pub fn begin_rotation(&mut self, now: Timestamp) -> Result<Step, Error> {
        match self.rotation() {
            None => {}
            Some(RotationPhase::Distributing) => return Ok(Step::Unchanged),
            Some(RotationPhase::Reissuing) => {
                return Err(refused("begin a rotation", "one is underway; finish it first"));
            }
        }
        let outer = self.root.validity(now)?;
        let root = Root::create(&self.name, now)?;
        let params = certificate::root_params(&self.name, root.trusted.validity().within(outer))?;
        let cross = params.signed_by(&root.key.pair()?, &self.root.issuer()?).map_err(Error::signing)?;
        let cross_certificate = certificate::to_pem(cross.der());
        let phase = RotationPhase::Distributing;
        self.rotation = Some(Rotation { phase, started_at: now, root, cross_certificate });
        Ok(Step::Done)
    }

    /// Lets leaves come from root 2: distributing → reissuing.
    pub fn promote(&mut self) -> Result<Step, Error> {
        let Some(rotation) = &mut self.rotation else {
            return Err(refused("promote the next root", "there is none; begin a rotation first"));
        };
        match std::mem::replace(&mut rotation.phase, RotationPhase::Reissuing) {
            RotationPhase::Distributing => Ok(Step::Done),
            RotationPhase::Reissuing => Ok(Step::Unchanged),
        }
    }

    /// Drops root 1 and its key: reissuing → stable. Leaves of root 1 are believed no longer.
    pub fn finish_rotation(&mut self) -> Result<Step, Error> {
        match self.rotation.take() {
            None => Ok(Step::Unchanged),
            Some(Rotation { phase: RotationPhase::Reissuing, root, cross_certificate, .. }) => {
                let old = std::mem::replace(&mut self.root, root);
                self.former = Some(Former { root: old.trusted, cross_certificate });
                Ok(Step::Done)
            }
            distributing => {
                self.rotation = distributing;
                Err(refused("finish the rotation", "leaves still come from the old root; promote the new one first"))
            }
        }
    }

    fn issuing(&self) -> &Root {
        match &self.rotation {
            Some(rotation) if rotation.phase == RotationPhase::Reissuing => &rotation.root,
            _ => &self.root,
        }
    }

    /// What follows the leaf in a chain: in the order of the path for those who believe root 1 only; root 2 comes last,
    /// for joiners whose token names it.
    fn above_leaf(&self) -> String {
        let old = self.root.trusted.to_pem();
        match (&self.rotation, &self.former) {
            (Some(rotation), _) if rotation.phase == RotationPhase::Reissuing => {
                [&rotation.cross_certificate, &old, &rotation.root.trusted.to_pem()].map(String::as_str).concat()
            }
            (_, Some(former)) => [&former.cross_certificate, &former.root.to_pem(), &old].map(String::as_str).concat(),
            (_, None) => old,
        }
    }
}

fn refused(step: &'static str, reason: &'static str) -> Error {
    Error::Rotation { step, reason }
}
