//! Whom to ask, and how an answer becomes a model type or an error a person can act upon.

use super::output::Format;
use crate::model::{Kind, Object};
use crate::rpc::{Fault, FaultKind, MANAGER_PORT, MAX_MESSAGE, dial_address, dial_socket, proto, with_default_port};
use anyhow::{Context, Result};
use clap::Args;
use proto::block_control_client::BlockControlClient;
use proto::control_client::ControlClient;
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The control socket of a manager or block service [default: that of `symphony dev`]
    #[arg(long, global = true, env = "SYMPHONY_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// A manager's HOST[:PORT]; wins over a socket
    #[arg(long = "manager", id = "manager_address", global = true, env = "SYMPHONY_MANAGER", value_name = "HOST:PORT")]
    pub manager: Option<String>,
}

/// Where roles keep their state unless told otherwise: /var/lib/symphony for root, else below the home directory.
pub fn default_config_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/symphony".into();
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state.or_else(home).unwrap_or_else(|| ".".into()).join("symphony")
}

/// What holds for the whole command.
pub struct Session {
    pub connect: ConnectArgs,
    pub format: Format,
    pub wait: bool,
    pub timeout: Duration,
}

impl Session {
    async fn channel(&self, role: &str) -> Result<Channel> {
        if let Some(address) = &self.connect.manager {
            return Ok(dial_address(&with_default_port(address, MANAGER_PORT)).await?);
        }
        let default = || default_config_dir().join(role).join("control.sock");
        let socket = self.connect.socket.clone().unwrap_or_else(default);
        Ok(dial_socket(&socket).await?)
    }

    /// A client of a manager.
    pub async fn manager(&self) -> Result<Manager> {
        let client = ControlClient::new(self.channel("manager").await?);
        Ok(Manager { client: client.max_decoding_message_size(MAX_MESSAGE) })
    }

    /// A client of a block service's own socket.
    pub async fn block(&self) -> Result<BlockControlClient<Channel>> {
        Ok(BlockControlClient::new(self.channel("block").await?))
    }
}

/// A manager, as commands use it.
#[derive(Clone)]
pub struct Manager {
    pub client: ControlClient<Channel>,
}

/// The answer, or the fault in words that fit the socket that was asked.
pub fn answer<T>(result: Result<Response<T>, Status>, wanted: &str) -> Result<T> {
    result.map(Response::into_inner).map_err(|status| {
        let fault = Fault::from(status);
        if fault.kind != FaultKind::Unsupported {
            return fault.into();
        }
        let text = format!("this socket does not belong to a {wanted}: name a {wanted}'s with --socket");
        Fault::new(FaultKind::Unsupported, text).into()
    })
}

/// What a manager says, once more judged.
pub fn object(message: proto::Object) -> Result<Object> {
    Object::try_from(message).context("reading the manager's answer")
}

impl Manager {
    pub async fn get(&mut self, kind: Kind, reference: &str) -> Result<Object> {
        let request = proto::GetRequest { kind: proto::Kind::from(kind).into(), reference: reference.into() };
        object(answer(self.client.get(request).await, "manager")?)
    }

    /// All objects of a kind, page by page.
    pub async fn list(&mut self, kind: Kind) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = proto::ListRequest { kind: proto::Kind::from(kind).into(), page_size: 0, page_token };
            let page = answer(self.client.list(request).await, "manager")?;
            for message in page.objects {
                objects.push(object(message)?);
            }
            if page.next_page_token.is_empty() {
                return Ok(objects);
            }
            page_token = page.next_page_token;
        }
    }
}
