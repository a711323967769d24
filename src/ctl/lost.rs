//! `--lost`, and whatever else is asked before it is done: what is closed or destroyed, said first.

use super::connect::{Session, answer};
use super::failure::Failure;
use super::output;
use crate::model::{Kind, Loss};
use crate::rpc::proto;
use anyhow::{Context, Result};
use clap::Args;
use std::io::{BufRead, IsTerminal, Write};

/// How an object is taken out whose block service does not answer.
#[derive(Clone, Copy, Debug, Args)]
pub struct LostArgs {
    /// Its block service is down: close it here at once; its bytes stay on that host's disks as an orphan
    #[arg(long, env = "SYMPHONY_LOST", value_parser = clap::builder::BoolishValueParser::new())]
    pub lost: bool,
    /// Do not ask at a terminal
    #[arg(long, env = "SYMPHONY_YES", value_parser = clap::builder::BoolishValueParser::new())]
    pub yes: bool,
}

/// Names in a sentence, not too many of them.
fn named(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// What closing means, for people; a paragraph.
fn statement(loss: &Loss) -> String {
    let Loss { services, attachments, snapshots, volumes, images, images_gone, pools, starved } = loss;
    let mut text = String::new();
    let mut line = |what: &str, names: &[String], then: &str| {
        if !names.is_empty() {
            text.push_str(&format!("  {what} {}{then}\n", named(names)));
        }
    };
    line("volumes", volumes, "");
    line("snapshots", snapshots, "");
    line("attachments", attachments, "");
    line("pools", pools, "");
    line("copies of images", images, "");
    line("images", images_gone, ": nothing else keeps them, they have to be imported again");
    line("volumes elsewhere", starved, ": they were being filled from there and never will be; remove them");
    let closed = if text.is_empty() { "nothing is closed\n".to_owned() } else { format!("this closes\n{text}") };
    let hosts = match services.as_slice() {
        [] => String::new(),
        [one] => format!("on block service {one}.\n"),
        many => format!("on block services {}.\n", many.join(", ")),
    };
    format!(
        "{closed}{hosts}No byte is destroyed: what they held stays on the disks of that host. The cluster forgets it, and \
         their names are free. If the host comes back, it stops serving them as soon as it has reached a manager (until then \
         whoever is connected there goes on), and they show in `symphony ctl orphans list`.\n"
    )
}

/// Goes on if the user said so beforehand, says so now at a terminal, or, where `silence` does, there is no terminal.
///
/// # Errors
/// If the user says no, or cannot be asked and has to be.
pub fn confirm(yes: bool, silence: bool, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let text = format!("{question} There is nobody to ask here: say --yes");
        return if silence { Ok(()) } else { Err(Failure::Usage(text).into()) };
    }
    let mut said = String::new();
    let mut out = std::io::stderr().lock();
    write!(out, "{question} Type 'yes' to go on: ").and_then(|()| out.flush()).context("asking")?;
    std::io::stdin().lock().read_line(&mut said).context("reading the answer")?;
    match said.trim() {
        "yes" => Ok(()),
        _ => Err(Failure::Unfulfilled("nothing was done".into()).into()),
    }
}

/// Says what a loss means, and asks.
pub async fn announce(session: &Session, kind: Kind, reference: &str, yes: bool) -> Result<Loss> {
    let mut recovery = session.recovery().await?;
    let loss = Loss::from(answer(recovery.get_loss(request(kind, reference)).await, "manager")?);
    if !loss.is_empty() {
        eprint!("{}", statement(&loss));
        confirm(yes, true, "Close them?")?;
    }
    Ok(loss)
}

fn request(kind: Kind, reference: &str) -> proto::LossRequest {
    proto::LossRequest { kind: proto::Kind::from(kind).into(), reference: reference.to_owned() }
}

/// Closes one object whose block service is down.
pub async fn close(session: &Session, kind: Kind, reference: &str, yes: bool) -> Result<()> {
    announce(session, kind, reference, yes).await?;
    let mut recovery = session.recovery().await?;
    let loss = Loss::from(answer(recovery.close_lost(request(kind, reference)).await, "manager")?);
    output::one(session.format, &loss, reference, |_| {
        format!("closed {kind} '{reference}'; its bytes stay on its host's disks\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_names_what_is_closed_and_what_becomes_of_the_bytes() {
        let loss = Loss {
            services: vec!["0198 on 'one'".into()],
            volumes: vec!["db".into(), "web".into()],
            images_gone: vec!["noble".into()],
            starved: vec!["half".into()],
            ..Loss::default()
        };
        let text = statement(&loss);
        for words in
            ["'db', 'web'", "'noble': nothing else keeps", "'half': they were", "'one'", "No byte is destroyed"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("snapshots"), "{text}");
        assert!(statement(&Loss::default()).contains("nothing is closed"));
        let many: Vec<String> = (0..50).map(|number| number.to_string()).collect();
        assert!(named(&many).ends_with("and 30 more"));
    }
}
