//! Contexts: the clusters that a user works with, by name, in a file that a person can read and edit.
//!
//! ```json
//! { "current": "prod", "contexts": { "prod": { "bundle": "/home/me/prod", "managers": [] } } }
//! ```

use super::failure::Failure;
use crate::host::files::{make_directory, read_guarded, write_atomic};
use crate::model::Name;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one that is used where nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Name>,
    #[serde(default)]
    pub contexts: BTreeMap<Name, Context>,
}

/// How one cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Absolute path of a bundle.
    pub bundle: PathBuf,
    /// Instead of those in the bundle; empty: those.
    #[serde(default)]
    pub managers: Vec<String>,
}

/// Who may write here decides whom its owner talks to.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Where contexts are kept unless told otherwise.
pub fn default_path() -> PathBuf {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    config.or_else(home).unwrap_or_else(|| ".".into()).join("symphony/config.json")
}

impl Contexts {
    /// Reads the file; no file, no contexts.
    ///
    /// # Errors
    /// If others may write it, or it is not what it should be.
    pub fn read(path: &Path) -> Result<Self> {
        match read_guarded(path, WRITABLE_BY_OTHERS).context("reading the contexts")? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not a list of contexts: mend it or move it away", path.display())),
            None => Ok(Self::default()),
        }
    }

    /// Writes the file, for its owner only.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            make_directory(directory, 0o700)?;
        }
        let text = serde_json::to_string_pretty(self).context("writing the contexts")? + "\n";
        Ok(write_atomic(path, text.as_bytes(), 0o600)?)
    }

    /// # Errors
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> Result<(&Name, &Context), Failure> {
        self.contexts.iter().find(|(known, _)| known.as_str() == name).ok_or_else(|| {
            let known = self.contexts.keys().map(Name::as_str).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "there is none yet".into() } else { format!("there are {known}") };
            Failure::Usage(format!("no context is called '{name}': {known} (`symphony ctl context add` adds one)"))
        })
    }
}

/// What was said of whom to ask: by options, or the environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'a> {
    pub socket: Option<&'a Path>,
    pub manager: Option<&'a str>,
    pub bundle: Option<&'a Path>,
    pub context: Option<&'a str>,
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Socket(PathBuf),
    /// No socket was named: that of the default directory.
    DefaultSocket,
    /// A manager on this very host.
    Plain(String),
    /// The managers of a bundle, or others in their stead.
    Bundle {
        bundle: PathBuf,
        managers: Vec<String>,
    },
}

/// Whom to ask. A context that is named stands behind `--bundle` and `--manager`, and wins over a socket, which wins
/// over the context in use; an empty name stands for no context.
///
/// # Errors
/// If the context does not exist.
pub fn choose(wishes: Wishes<'_>, contexts: &Contexts) -> Result<Target, Failure> {
    let Wishes { socket, manager, bundle, context } = wishes;
    let named = match context {
        Some("") => None,
        Some(name) => Some(contexts.get(name)?.1),
        None if socket.is_some() || bundle.is_some() => None,
        None => contexts.current.as_ref().map(|name| contexts.get(name.as_str())).transpose()?.map(|(_, found)| found),
    };
    let managers = |others: &[String]| manager.map_or_else(|| others.to_vec(), |manager| vec![manager.to_owned()]);
    Ok(match (bundle, named, manager, socket) {
        (Some(bundle), named, ..) => {
            Target::Bundle { bundle: bundle.to_owned(), managers: managers(named.map_or(&[], |named| &named.managers)) }
        }
        (None, Some(named), ..) => Target::Bundle { bundle: named.bundle.clone(), managers: managers(&named.managers) },
        (None, None, Some(manager), _) => Target::Plain(manager.to_owned()),
        (None, None, None, Some(socket)) => Target::Socket(socket.to_owned()),
        (None, None, None, None) => Target::DefaultSocket,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn contexts(current: Option<&str>) -> Contexts {
        let context = |bundle: &str, managers: &[&str]| Context {
            bundle: bundle.into(),
            managers: managers.iter().map(ToString::to_string).collect(),
        };
        let known = [("prod", context("/prod", &[])), ("lab", context("/lab", &["lab-1"]))];
        Contexts {
            current: current.map(|name| name.parse().unwrap()),
            contexts: known.into_iter().map(|(name, context)| (name.parse().unwrap(), context)).collect(),
        }
    }

    fn bundle(path: &str, managers: &[&str]) -> Target {
        Target::Bundle { bundle: path.into(), managers: managers.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn what_is_said_wins_over_what_is_configured() {
        let none = Wishes::default();
        let socket = Wishes { socket: Some(Path::new("/s")), ..none };
        let manager = Wishes { manager: Some("m"), ..none };
        let context = |name| Wishes { context: Some(name), ..none };
        let lab = contexts(Some("lab"));
        let empty = Contexts::default();
        for (wishes, contexts, expected) in [
            (none, &empty, Target::DefaultSocket),
            (none, &contexts(None), Target::DefaultSocket),
            (none, &lab, bundle("/lab", &["lab-1"])),
            (socket, &empty, Target::Socket("/s".into())),
            (socket, &lab, Target::Socket("/s".into())),
            (manager, &empty, Target::Plain("m".into())),
            (manager, &lab, bundle("/lab", &["m"])),
            (Wishes { manager: Some("m"), ..socket }, &lab, Target::Plain("m".into())),
            (Wishes { bundle: Some(Path::new("/b")), ..none }, &lab, bundle("/b", &[])),
            (Wishes { bundle: Some(Path::new("/b")), ..manager }, &lab, bundle("/b", &["m"])),
            (context("prod"), &lab, bundle("/prod", &[])),
            (Wishes { context: Some("prod"), ..socket }, &lab, bundle("/prod", &[])),
            (Wishes { context: Some("prod"), ..manager }, &lab, bundle("/prod", &["m"])),
            (context(""), &lab, Target::DefaultSocket),
            (Wishes { context: Some(""), ..manager }, &lab, Target::Plain("m".into())),
        ] {
            assert_eq!(choose(wishes, contexts).unwrap(), expected, "{wishes:?}");
        }
        let error = choose(context("prdo"), &lab).unwrap_err().to_string();
        assert!(error.contains("'prdo'") && error.contains("lab, prod"), "{error}");
    }

    #[test]
    fn contexts_survive_their_file_and_are_private() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("deep/config.json");
        assert_eq!(Contexts::read(&path).unwrap(), Contexts::default());
        contexts(Some("prod")).write(&path).unwrap();
        assert_eq!(Contexts::read(&path).unwrap(), contexts(Some("prod")));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(format!("{:#}", Contexts::read(&path).unwrap_err()).contains("chmod 600"));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "{").unwrap();
        assert!(Contexts::read(&path).unwrap_err().to_string().contains("config.json"));
    }
}
