//! Bundles: what an operator or a user of volumes at a distance needs, in one directory or one file.
//!
//! ```text
//!   DIRECTORY/                         or one FILE: symphony.json with the three texts in it
//!     symphony.json    cluster, client, managers
//!     ca-cert.pem      the roots of the cluster        ┐
//!     client-cert.pem  the client's certificate        ├ as libnbd, qemu and nbdkit look for them
//!     client-key.pem   its key, for its owner only     ┘
//! ```
//!
//! Managers may be edited by hand; everything else is checked against the certificate.

use crate::host::directory::FileError;
use crate::host::files::{make_private_directory, read_guarded, read_optional, write_atomic};
use crate::model::{ClientId, ClientRole, ClusterId, Name};
use crate::pki::{self, Credentials, Role, Side, SigningKey, TrustBundle};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use uuid::Uuid;
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("there is no bundle at {}: `symphony ctl manager client create NAME` makes one", path.display())]
    Missing { path: PathBuf },
    #[error("the bundle {} lacks {name}: copy all of it", path.display())]
    Lacking { path: PathBuf, name: &'static str },
    #[error("the bundle {} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("cannot use the keys of the bundle {}", path.display())]
    Pki { path: PathBuf, source: pki::Error },
}

/// A client's means to reach a cluster. Debug shows no key.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub cluster: ClusterId,
    pub cluster_name: Name,
    pub client: ClientId,
    pub name: Name,
    pub role: ClientRole,
    /// `host:port` each, tried in turn.
    pub managers: Vec<String>,
    pub credentials: Credentials,
}

const FORMAT: &str = "symphony bundle 1";
/// What describes a bundle, in its directory.
const DESCRIPTION: &str = "symphony.json";
const ROOTS: &str = "ca-cert.pem";
const CERTIFICATE: &str = "client-cert.pem";
const KEY: &str = "client-key.pem";
/// Nobody but the owner may do anything with a file that holds a key.
const OTHERS: u32 = 0o077;

/// `symphony.json`; the three texts are there where the bundle is one file.
#[derive(Serialize, Deserialize)]
struct Description {
    format: String,
    cluster: Named<ClusterId>,
    client: DescribedClient,
    managers: Vec<String>,
    #[serde(rename = "ca-cert", default, skip_serializing_if = "Option::is_none")]
    roots: Option<String>,
    #[serde(rename = "client-cert", default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(rename = "client-key", default, skip_serializing_if = "Option::is_none")]
    key: Option<SigningKey>,
}

#[derive(Serialize, Deserialize)]
struct Named<I> {
    id: I,
    name: Name,
}

#[derive(Serialize, Deserialize)]
struct DescribedClient {
    id: ClientId,
    name: Name,
    role: ClientRole,
}

/// The role that a client's certificate names.
pub fn certified_role(role: ClientRole) -> Role {
    match role {
        ClientRole::Admin => Role::Admin,
        ClientRole::Viewer => Role::Viewer,
        ClientRole::Data => Role::Data,
    }
}

impl Bundle {
    /// Reads a bundle: a directory, the description in one, or a single file.
    ///
    /// # Errors
    /// If a part is missing, others may read the key, or the parts do not belong together.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let file = if path.is_dir() { path.join(DESCRIPTION) } else { path.to_owned() };
        let missing = || BundleError::Missing { path: path.to_owned() };
        let bytes = Zeroizing::new(read_optional(&file)?.ok_or_else(missing)?);
        let damaged = |reason: String| BundleError::Damaged { path: path.to_owned(), reason };
        let description: Description = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if description.format != FORMAT {
            return Err(damaged(format!("it is a '{}', not a '{FORMAT}'", description.format)));
        }
        let beside = |name| file.parent().unwrap_or(Path::new("")).join(name);
        let text =
            |bytes: Vec<u8>, name: &str| String::from_utf8(bytes).map_err(|_| damaged(format!("{name} is not text")));
        let open = |name: &'static str| -> Result<String, BundleError> {
            let lacking = || BundleError::Lacking { path: path.to_owned(), name };
            text(read_optional(&beside(name))?.ok_or_else(lacking)?, name)
        };
        let unusable = |source| BundleError::Pki { path: path.to_owned(), source };
        let key = match &description.key {
            // The file that was just read holds the key: it must be closed to others itself.
            Some(key) => read_guarded(&file, OTHERS).map(|_| key.clone())?,
            None => {
                let lacking = || BundleError::Lacking { path: path.to_owned(), name: KEY };
                let pem = Zeroizing::new(text(read_guarded(&beside(KEY), OTHERS)?.ok_or_else(lacking)?, KEY)?);
                SigningKey::from_pem(&pem).map_err(unusable)?
            }
        };
        let certificate = description.certificate.clone().map_or_else(|| open(CERTIFICATE), Ok)?;
        let roots = description.roots.clone().map_or_else(|| open(ROOTS), Ok)?;
        let credentials = TrustBundle::from_pem(&roots)
            .and_then(|trust| Credentials::new(key, &certificate, trust))
            .map_err(unusable)?;
        Self::assemble(description, credentials).map_err(damaged)
    }

    fn assemble(description: Description, credentials: Credentials) -> Result<Self, String> {
        let Description { cluster, client, managers, .. } = description;
        let described = pki::Bearer {
            cluster: cluster.id,
            role: certified_role(client.role),
            id: Uuid::from_bytes(client.id.to_bytes()),
        };
        let certified = credentials.bearer();
        if described != certified {
            return Err(format!("it describes {described}, and its certificate is that of {certified}"));
        }
        Ok(Self {
            cluster: cluster.id,
            cluster_name: cluster.name,
            client: client.id,
            name: client.name,
            role: client.role,
            managers,
            credentials,
        })
    }

    fn description(&self) -> Description {
        Description {
            format: FORMAT.to_owned(),
            cluster: Named { id: self.cluster, name: self.cluster_name.clone() },
            client: DescribedClient { id: self.client, name: self.name.clone(), role: self.role },
            managers: self.managers.clone(),
            roots: None,
            certificate: None,
            key: None,
        }
    }

    /// Writes the bundle as a directory (made 0700 if it is missing), over a bundle that may be there.
    ///
    /// # Errors
    /// If others may enter the directory, or it cannot be written.
    pub fn write_directory(&self, path: &Path) -> Result<(), BundleError> {
        make_private_directory(path)?;
        for (name, content) in self.files(path)? {
            write_atomic(&path.join(name), content.as_bytes(), 0o600)?;
        }
        self.write_description(&path.join(DESCRIPTION), &self.description())
    }

    /// Writes the bundle as one file, mode 0600.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_file(&self, path: &Path) -> Result<(), BundleError> {
        let [(_, roots), (_, certificate), _] = self.files(path)?;
        let description = Description {
            roots: Some(roots.to_string()),
            certificate: Some(certificate.to_string()),
            key: Some(self.credentials.key().clone()),
            ..self.description()
        };
        self.write_description(path, &description)
    }

    fn files(&self, path: &Path) -> Result<[pki::ToolFile; 3], BundleError> {
        let files = self.credentials.tool_files(Side::Client);
        files.map_err(|source| BundleError::Pki { path: path.to_owned(), source })
    }

    fn write_description(&self, path: &Path, description: &Description) -> Result<(), BundleError> {
        let damaged =
            |error: serde_json::Error| BundleError::Damaged { path: path.to_owned(), reason: error.to_string() };
        let text = Zeroizing::new(serde_json::to_string_pretty(description).map_err(damaged)? + "\n");
        Ok(write_atomic(path, text.as_bytes(), 0o600)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::pki::Authority;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    fn bundle(role: ClientRole) -> Bundle {
        let (cluster, client, now) =
            (ClusterId::generate(), ClientId::generate(), Timestamp::from_system(SystemTime::now()));
        let authority = Authority::create(cluster, &"prod".parse().unwrap(), now).unwrap();
        let bearer = pki::Bearer { cluster, role: certified_role(role), id: Uuid::from_bytes(client.to_bytes()) };
        let key = SigningKey::generate().unwrap();
        let issued = authority.issue(&key.request().unwrap(), &bearer, &[], now, Duration::from_secs(3600)).unwrap();
        Bundle {
            cluster,
            cluster_name: "prod".parse().unwrap(),
            client,
            name: "ops".parse().unwrap(),
            role,
            managers: vec!["db-01:15760".into(), "db-02:15760".into()],
            credentials: Credentials::new(key, &issued.chain_pem, authority.trust()).unwrap(),
        }
    }

    fn facts(bundle: &Bundle) -> (ClusterId, ClientId, String, Vec<String>, pki::Bearer) {
        let name = bundle.name.to_string();
        (bundle.cluster, bundle.client, name, bundle.managers.clone(), bundle.credentials.bearer())
    }

    #[test]
    fn a_bundle_is_read_as_it_was_written_in_either_form() {
        let scratch = tempfile::tempdir().unwrap();
        let (directory, file) = (scratch.path().join("ops"), scratch.path().join("ops.json"));
        let written = bundle(ClientRole::Admin);
        written.write_directory(&directory).unwrap();
        written.write_directory(&directory).unwrap();
        written.write_file(&file).unwrap();
        for path in [&directory, &directory.join(DESCRIPTION), &file] {
            let read = Bundle::read(path).unwrap();
            assert_eq!(facts(&read), facts(&written), "{}", path.display());
            assert_eq!(read.credentials.trust(), written.credentials.trust());
        }
        let mut names: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names, [ROOTS, CERTIFICATE, KEY, DESCRIPTION].map(|name| directory.join(name)));
        for path in names.into_iter().chain([file]) {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_and_the_file_named() {
        let scratch = tempfile::tempdir().unwrap();
        let (directory, file) = (scratch.path().join("ops"), scratch.path().join("ops.json"));
        bundle(ClientRole::Admin).write_directory(&directory).unwrap();
        bundle(ClientRole::Admin).write_file(&file).unwrap();
        for (secret, path) in [(directory.join(KEY), &directory), (file.clone(), &file)] {
            std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
            let error = anyhow::Error::from(Bundle::read(path).unwrap_err());
            assert!(format!("{error:#}").contains(&format!("chmod 600 {}", secret.display())), "{error:#}");
        }
    }

    #[test]
    fn parts_that_are_missing_damaged_or_of_another_bundle_are_named() {
        let scratch = tempfile::tempdir().unwrap();
        let reason = |path: &Path| format!("{:#}", anyhow::Error::from(Bundle::read(path).unwrap_err()));
        assert!(reason(&scratch.path().join("none")).contains("client create"), "no bundle");
        let directory = scratch.path().join("ops");
        bundle(ClientRole::Admin).write_directory(&directory).unwrap();
        let certificate = std::fs::read(directory.join(CERTIFICATE)).unwrap();
        std::fs::remove_file(directory.join(CERTIFICATE)).unwrap();
        assert!(reason(&directory).contains("lacks client-cert.pem"), "{}", reason(&directory));
        std::fs::write(directory.join(CERTIFICATE), "nonsense").unwrap();
        assert!(reason(&directory).contains("certificate"), "{}", reason(&directory));
        std::fs::write(directory.join(CERTIFICATE), certificate).unwrap();
        let described = std::fs::read_to_string(directory.join(DESCRIPTION)).unwrap();
        std::fs::write(directory.join(DESCRIPTION), described.replace("admin", "viewer")).unwrap();
        assert!(reason(&directory).contains("its certificate is that of"), "{}", reason(&directory));
        std::fs::write(directory.join(DESCRIPTION), "{}").unwrap();
        assert!(reason(&directory).contains("damaged"), "{}", reason(&directory));
        let other = bundle(ClientRole::Admin).credentials;
        std::fs::write(directory.join(DESCRIPTION), described).unwrap();
        std::fs::write(directory.join(KEY), other.key().to_pem().as_bytes()).unwrap();
        assert!(reason(&directory).contains("another key"), "{}", reason(&directory));
    }
}
