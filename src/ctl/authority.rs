//! `ctl manager ca …`

use super::client::short;
use super::connect::{Session, answer};
use super::failure::Failure;
use super::output::{self, fields, table};
use super::wait::spinner;
use crate::model::Timestamp;
use crate::rpc::proto;
use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The roots of the cluster, and how far an exchange of them has come
    Show,
    /// Move everybody to a new root, or see how far that has come
    #[command(
        after_help = "Services move by themselves. Returns when all have moved, or at once where clients have to renew \
                            first: the old root goes when nobody needs it any more. --finish drops it now; whoever \
                            still hangs on it is shut out, a block service until it is removed and joins anew."
    )]
    Rotate {
        /// Drop the old root now, whoever still needs it
        #[arg(long, env = "SYMPHONY_FINISH", value_parser = clap::builder::BoolishValueParser::new())]
        finish: bool,
    },
}

fn document(authority: &proto::Authority) -> Value {
    let roots: Vec<Value> = authority
        .roots
        .iter()
        .map(|root| {
            let expires_at = Timestamp::from_millis(root.expires_at);
            json!({"fingerprint": root.fingerprint, "expires_at": expires_at, "signing": root.signing})
        })
        .collect();
    json!({
        "state": authority.state,
        "roots": roots,
        "moved": authority.moved,
        "total": authority.total,
        "waiting_for": authority.waiting_for,
    })
}

fn describe(authority: &proto::Authority) -> String {
    let mut text = fields(&[("State", authority.state.clone())]);
    if authority.state != "stable" {
        text += &fields(&[("Moved", format!("{} of {}", authority.moved, authority.total))]);
    }
    text.push('\n');
    let rows = authority.roots.iter().map(|root| {
        let signs = if root.signing { "signs" } else { "is believed" };
        vec![short(&root.fingerprint), signs.into(), Timestamp::from_millis(root.expires_at).to_string()]
    });
    text += &table(&["ROOT", "USE", "EXPIRES"], rows.collect());
    if !authority.waiting_for.is_empty() {
        text += "\nStill to move:\n";
        text.extend(authority.waiting_for.iter().map(|who| format!("  {who}\n")));
    }
    text
}

fn print(session: &Session, authority: &proto::Authority) -> Result<()> {
    let name = authority.roots.iter().find(|root| root.signing).map(|root| root.fingerprint.clone());
    output::one(session.format, &document(authority), &name.unwrap_or_default(), |_| describe(authority))
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut manager = session.manager().await?;
    match verb {
        Verb::Show => {
            let authority = answer(manager.client.get_authority(proto::GetAuthorityRequest {}).await, "manager")?;
            print(session, &authority)
        }
        Verb::Rotate { finish } => {
            let request = proto::RotateAuthorityRequest { finish };
            let begun = answer(manager.client.rotate_authority(request).await, "manager")?;
            let authority = if session.wait { follow(session, begun).await? } else { begun };
            print(session, &authority)
        }
    }
}

/// Who moves without anybody's help.
fn moves_by_itself(sentence: &str) -> bool {
    sentence.ends_with("by itself") || sentence.starts_with("the leader")
}

/// Waits until the exchange is over, or only those are left who need somebody's help.
async fn follow(session: &Session, first: proto::Authority) -> Result<proto::Authority> {
    let bar = spinner("exchanging the root".into());
    let mut authority = first;
    let waited = tokio::time::timeout(session.timeout, async {
        while authority.state != "stable" && authority.waiting_for.iter().all(|who| moves_by_itself(who))
            || authority.waiting_for.iter().any(|who| moves_by_itself(who))
        {
            bar.set_message(format!("exchanging the root: {} of {} moved", authority.moved, authority.total));
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut manager = session.manager().await?;
            authority = answer(manager.client.get_authority(proto::GetAuthorityRequest {}).await, "manager")?;
        }
        Ok::<(), anyhow::Error>(())
    })
    .await;
    bar.finish_and_clear();
    match waited {
        Ok(outcome) => outcome.map(|()| authority),
        Err(_) => {
            let what = format!("{} of {} have moved", authority.moved, authority.total);
            Err(Failure::TimedOut { limit: session.timeout, what, look: "manager ca show".into() }.into())
        }
    }
}
