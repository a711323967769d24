//! `ctl context …`: asks nobody, changes the user's own file.

use super::bundle::Bundle;
use super::connect::Session;
use super::contexts::{Context, Contexts};
use super::failure::Failure;
use super::output::{self, fields, say, table};
use crate::model::Name;
use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// All contexts, and which is in use
    #[command(visible_alias = "ls")]
    List,
    /// Use a context from now on
    Use { name: Name },
    /// Add a context, or change the one of this name; the first is used at once
    #[command(after_help = "Example: symphony ctl context add prod --bundle ./prod --manager db-01:15760")]
    Add { name: Name },
    /// Forget a context; its bundle stays
    #[command(visible_alias = "rm")]
    Remove { name: Name },
    /// Show a context and its bundle
    Show {
        /// [default: the one in use]
        name: Option<Name>,
    },
}

pub fn run(session: &Session, verb: Verb) -> Result<()> {
    let path = session.connect.config_path();
    let mut contexts = Contexts::read(&path)?;
    let said = match verb {
        Verb::List => return list(session, &contexts),
        Verb::Show { name } => return show(session, &contexts, name.as_ref()),
        Verb::Use { name } => {
            contexts.get(name.as_str())?;
            contexts.current = Some(name.clone());
            format!("using context '{name}'\n")
        }
        Verb::Add { name } => {
            let context = described(session)?;
            let known = contexts.contexts.insert(name.clone(), context).is_some();
            let first = contexts.current.is_none();
            contexts.current.get_or_insert_with(|| name.clone());
            let did = if known { "changed" } else { "added" };
            format!("{did} context '{name}'{}\n", if first { ", which is in use now" } else { "" })
        }
        Verb::Remove { name } => {
            contexts.get(name.as_str())?;
            contexts.contexts.remove(&name);
            contexts.current = contexts.current.filter(|current| *current != name);
            format!("removed context '{name}'\n")
        }
    };
    contexts.write(&path)?;
    say(&said)
}

/// The context that the options describe. A bundle that cannot be read now would fail every later command.
fn described(session: &Session) -> Result<Context> {
    let usage = || Failure::Usage("a context needs a bundle: name it with --bundle".into());
    let bundle = session.connect.bundle.as_deref().ok_or_else(usage)?;
    Bundle::read(bundle)?;
    let absolute = std::path::absolute(bundle).with_context(|| format!("finding {}", bundle.display()))?;
    Ok(Context { bundle: absolute, managers: session.connect.manager.iter().cloned().collect() })
}

fn summary(contexts: &Contexts, name: &Name, context: &Context) -> Value {
    json!({
        "name": name,
        "current": contexts.current.as_ref() == Some(name),
        "bundle": context.bundle,
        "managers": context.managers,
    })
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn list(session: &Session, contexts: &Contexts) -> Result<()> {
    let items: Vec<Value> = contexts.contexts.iter().map(|(name, context)| summary(contexts, name, context)).collect();
    output::list(
        session.format,
        &items,
        |item| word(&item["name"]),
        |items| {
            let mark = |item: &Value| if item["current"] == true { "*" } else { "-" }.to_owned();
            let row = |item: &Value| vec![mark(item), word(&item["name"]), word(&item["bundle"]), managers(item)];
            table(&["CURRENT", "NAME", "BUNDLE", "MANAGERS"], items.iter().map(row).collect())
        },
    )
}

fn managers(item: &Value) -> String {
    let names = item["managers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    if names.is_empty() { "of the bundle".into() } else { names.join(", ") }
}

fn show(session: &Session, contexts: &Contexts, name: Option<&Name>) -> Result<()> {
    let none = || Failure::Usage("no context is in use: name one, or `symphony ctl context use` one".into());
    let name = name.or(contexts.current.as_ref()).ok_or_else(none)?;
    let (name, context) = contexts.get(name.as_str())?;
    let bundle = Bundle::read(&context.bundle)?;
    let mut document = summary(contexts, name, context);
    document["cluster"] = json!({"id": bundle.cluster, "name": bundle.cluster_name});
    document["client"] = json!({"id": bundle.client, "name": bundle.name, "role": bundle.role});
    document["bundle_managers"] = json!(bundle.managers);
    document["expires_at"] = json!(bundle.credentials.expires_at());
    output::one(session.format, &document, name.as_str(), |document| {
        fields(&[
            ("Context", name.to_string()),
            ("Cluster", format!("{} ({})", bundle.cluster_name, bundle.cluster)),
            ("Client", format!("{} ({})", bundle.name, bundle.role)),
            ("Managers", if context.managers.is_empty() { bundle.managers.join(", ") } else { managers(document) }),
            ("Bundle", context.bundle.display().to_string()),
            ("Expires", bundle.credentials.expires_at().to_string()),
        ])
    })
}
