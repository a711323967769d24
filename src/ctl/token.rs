//! `ctl manager token …`

use super::connect::{Session, answer, object};
use super::output::{self, table};
use super::service::age;
use crate::host::files::write_atomic;
use crate::model::{Kind, Object, ServiceType, Timestamp, Token};
use crate::rpc::proto;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an invitation for block services on other hosts; it is shown once
    Create {
        /// What may join with it. Managers need none: they join through their store
        #[arg(long = "type", default_value = "block", env = "SYMPHONY_TOKEN_TYPE")]
        service_type: ServiceType,
        /// How long it is good for
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration, env = "SYMPHONY_TOKEN_TTL")]
        ttl: Duration,
        /// How many services may join with it
        #[arg(long, default_value_t = 1, env = "SYMPHONY_TOKEN_USES")]
        uses: u32,
        /// Write the token into this file, readable by you alone, and do not print it
        #[arg(long, env = "SYMPHONY_TOKEN_OUTPUT_FILE", value_name = "FILE")]
        output_file: Option<PathBuf>,
    },
    /// All tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Make a token worth nothing; who joined with it stays
    Revoke {
        /// Id or name
        token: String,
    },
}

fn expect(object: Object) -> Result<Token> {
    match object {
        Object::Token(token) => Ok(token),
        other => bail!("the manager answered with a {} instead of a token", other.kind()),
    }
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// How long until `end`, roughly, as people say it; none if it is past. What has begun of a second counts as one.
pub fn ahead(end: Timestamp) -> Option<String> {
    let left = now().age(end);
    let left = Duration::from_secs(left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0)));
    let text = humantime::format_duration(left).to_string();
    (!left.is_zero()).then(|| text.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

fn row(token: &Token) -> Vec<String> {
    let state = token
        .fault(now())
        .map_or("good", |fault| fault.trim_start_matches("was ").trim_start_matches("has ").trim_start_matches("is "));
    vec![
        token.meta.name.to_string(),
        token.spec.service_type.to_string(),
        state.to_owned(),
        ahead(token.spec.expires_at).unwrap_or_else(|| "-".into()),
        format!("{}/{}", token.status.used, token.spec.uses),
        age(token.meta.created_at),
    ]
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut manager = session.manager().await?;
    match verb {
        Verb::Create { service_type, ttl, uses, output_file } => {
            let request = proto::CreateTokenRequest {
                r#type: proto::ServiceType::from(service_type).into(),
                ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
                uses,
            };
            let made = answer(manager.client.create_token(request).await, "manager")?;
            let Some(message) = made.token else { bail!("the manager answered without a token") };
            let token = expect(object(message)?)?;
            // The text alone on standard output, so that it can be piped; what is to be known of it beside it.
            if session.format == output::Format::Table {
                eprintln!(
                    "token {} lets in {} block service(s) until {}; it is not shown again",
                    token.meta.name, token.spec.uses, token.spec.expires_at
                );
            }
            if let Some(path) = output_file {
                write_atomic(&path, format!("{}\n", made.text).as_bytes(), 0o600)
                    .with_context(|| format!("writing the token into {}", path.display()))?;
                return output::one(session.format, &token, token.meta.name.as_str(), |_| {
                    format!("token {} is in {}\n", token.meta.name, path.display())
                });
            }
            let document = json!({"token": token, "text": made.text});
            output::one(session.format, &document, &made.text, |_| format!("{}\n", made.text))
        }
        Verb::List => {
            let tokens: Vec<Token> = manager.list(Kind::Token).await?.into_iter().map(expect).collect::<Result<_>>()?;
            let header = ["NAME", "TYPE", "STATE", "EXPIRES IN", "USED", "AGE"];
            let people = |tokens: &[Token]| table(&header, tokens.iter().map(row).collect());
            output::list(session.format, &tokens, |token| token.meta.name.to_string(), people)
        }
        Verb::Revoke { token } => {
            let request = proto::RemoveRequest { reference: token };
            let token = expect(object(answer(manager.client.revoke_token(request).await, "manager")?)?)?;
            let name = token.meta.name.to_string();
            output::one(session.format, &token, &name, |_| format!("revoked token {name}\n"))
        }
    }
}
