//! `ctl manager client …`
//!
//! A client's key is made here, on the operator's machine, and leaves it only in the directory that is written.

use super::attachment;
use super::bundle::Bundle;
use super::connect::{Manager, Session, answer, object};
use super::failure::Failure;
use super::output::{self, table};
use super::service::age;
use super::token::ahead;
use super::wait::{Until, settle};
use crate::model::{Client, ClientRole, ClusterId, Kind, Object};
use crate::pki::{Credentials, SigningKey, TrustBundle, TrustedRoot};
use crate::rpc::proto;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a client, and write its certificate, key and the managers' addresses into a directory
    #[command(
        after_help = "With --renew, a client that exists gets another certificate with a new key; the older one stays \
                            good until it expires. If a key has leaked, remove the client and create it anew."
    )]
    Create {
        name: String,
        /// admin changes everything, viewer looks, data only uses the volumes that are attached to it
        #[arg(long, env = "SYMPHONY_CLIENT_ROLE", required_unless_present = "renew")]
        role: Option<ClientRole>,
        /// Where to write; made if it is missing
        #[arg(long, value_name = "DIR", env = "SYMPHONY_CLIENT_OUTPUT")]
        output_dir: Option<PathBuf>,
        /// How long the certificate lasts
        #[arg(long, default_value = "90d", value_parser = humantime::parse_duration, env = "SYMPHONY_CLIENT_TTL")]
        ttl: Duration,
        /// The client exists: write another certificate for it
        #[arg(long, env = "SYMPHONY_CLIENT_RENEW", value_parser = clap::builder::BoolishValueParser::new())]
        renew: bool,
    },
    /// All clients, the removed ones for as long as they are remembered
    #[command(visible_alias = "ls")]
    List,
    /// Void a client's certificates at once, and end its attachments
    #[command(
        visible_alias = "rm",
        after_help = "Waits until every block service that let the client in has cut it off; interrupted, or with --no-wait, \
                      that goes on. A host that is gone for good is left out with `volume detach --lost`."
    )]
    Remove {
        /// Id or name
        client: String,
    },
}

fn expect(object: Object) -> Result<Client> {
    match object {
        Object::Client(client) => Ok(client),
        other => bail!("the manager answered with a {} instead of a client", other.kind()),
    }
}

/// The beginning of a fingerprint, enough to tell roots apart.
pub fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(12).collect()
}

fn row(client: &Client) -> Vec<String> {
    let certificate = &client.status.certificate;
    vec![
        client.meta.name.to_string(),
        client.spec.role.to_string(),
        if client.meta.is_removed() { "removed" } else { "active" }.to_owned(),
        ahead(certificate.expires_at).unwrap_or_else(|| "expired".into()),
        short(&certificate.root),
        age(client.meta.created_at),
        client.meta.id.to_string(),
    ]
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut manager = session.manager().await?;
    match verb {
        Verb::Create { name, role, output_dir, ttl, renew } => {
            let directory = output_dir.unwrap_or_else(|| PathBuf::from(&name));
            create(session, &mut manager, &name, role, &directory, ttl, renew).await
        }
        Verb::List => {
            let clients: Vec<Client> =
                manager.list(Kind::Client).await?.into_iter().map(expect).collect::<Result<_>>()?;
            let header = ["NAME", "ROLE", "STATE", "EXPIRES IN", "ROOT", "AGE", "ID"];
            let people = |clients: &[Client]| table(&header, clients.iter().map(row).collect());
            output::list(session.format, &clients, |client| client.meta.name.to_string(), people)
        }
        Verb::Remove { client } => {
            // Asked for before: who removes itself hears nothing afterwards.
            let held = if session.wait { attachment::of_volume(&mut manager, "").await? } else { Vec::new() };
            let request = proto::RemoveRequest { reference: client };
            let client = expect(object(answer(manager.client.remove_client(request).await, "manager")?)?)?;
            for held in held.into_iter().filter(|held| held.spec.client == client.meta.id) {
                settle(session, Object::Attachment(held), Until::Gone).await?;
            }
            let name = client.meta.name.to_string();
            output::one(session.format, &client, &name, |_| format!("removed client '{name}'\n"))
        }
    }
}

async fn create(
    session: &Session,
    manager: &mut Manager,
    name: &str,
    role: Option<ClientRole>,
    directory: &Path,
    ttl: Duration,
    renew: bool,
) -> Result<()> {
    let path = directory.display();
    if !renew && directory.join("client-key.pem").exists() {
        let text = format!("{path} holds a client's key already: name another directory with --output-dir");
        return Err(Failure::Usage(text).into());
    }
    let role = match role {
        Some(role) => role,
        None => expect(manager.get(Kind::Client, name).await?)?.spec.role,
    };
    let key = SigningKey::generate()?;
    let request = proto::CreateClientRequest {
        name: name.to_owned(),
        role: proto::ClientRole::from(role).into(),
        certificate_request: key.request()?,
        lifetime_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        renew,
    };
    let made = answer(manager.client.create_client(request).await, "manager")?;
    let (Some(client), Some(certificate)) = (made.client, made.certificate) else {
        bail!("the manager answered without a client or a certificate");
    };
    let client = expect(object(client)?)?;
    let bundle = bundle_of(manager, &client, key, &certificate, made.managers).await?;
    bundle.write_directory(directory).with_context(|| match renew {
        true => format!("client '{name}' was renewed, but its bundle could not be written: run the command again"),
        false => format!(
            "client '{name}' was made, but its bundle could not be written: remove the client, or run the command again \
             with --renew"
        ),
    })?;
    let until = client.status.certificate.expires_at;
    output::one(session.format, &client, name, |_| {
        format!("{role} client '{name}' may ask until {until}; its key and certificate are in {path}\n")
    })
}

async fn bundle_of(
    manager: &mut Manager,
    client: &Client,
    key: SigningKey,
    certificate: &proto::Certificate,
    managers: Vec<String>,
) -> Result<Bundle> {
    let status = answer(manager.client.get_manager_status(proto::GetManagerStatusRequest {}).await, "manager")?;
    let roots = certificate.roots.iter().map(|root| TrustedRoot::from_pem(root)).collect::<Result<_, _>>()?;
    let credentials = Credentials::new(key, &certificate.chain, TrustBundle::new(roots)?)?;
    let cluster = credentials.bearer().cluster;
    if status.cluster_id.unwrap_or_default().parse::<ClusterId>()? != cluster {
        bail!("the manager answered with a certificate of another cluster");
    }
    Ok(Bundle {
        cluster,
        cluster_name: status.cluster_name.unwrap_or_default().parse()?,
        client: client.meta.id,
        name: client.meta.name.clone(),
        role: client.spec.role,
        managers,
        credentials,
    })
}
