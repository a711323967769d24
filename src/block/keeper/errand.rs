//! One attempt at a renewal: asks each manager in turn for a new certificate, with the key as proof.

use super::super::enrolment::credentials_of;
use super::super::worker::chain;
use crate::model::Addresses;
use crate::pki::{Bearer, Credentials, SigningKey};
use crate::rpc::{Fault, Transport, dial_address, proto};
use proto::enrollment_client::EnrollmentClient;
use std::time::Duration;

/// How long one manager may take.
const LIMIT: Duration = Duration::from_secs(10);

/// All that an attempt needs.
pub struct Errand {
    pub managers: Vec<String>,
    pub transport: Transport,
    pub bearer: Bearer,
    pub key: SigningKey,
    pub addresses: Addresses,
}

/// What a manager gave.
#[derive(Debug)]
pub enum Answer {
    Certified(Credentials),
    /// The service is no member any more.
    Removed,
}

impl Errand {
    /// The first manager's answer, or why the last one gave none.
    pub async fn run(self) -> Result<Answer, String> {
        let mut failure = "no manager is known".to_owned();
        for manager in &self.managers {
            let asked = tokio::time::timeout(LIMIT, self.ask(manager)).await;
            match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(answer) => return Ok(answer),
                Err(reason) => failure = format!("{manager}: {reason}"),
            }
        }
        Err(failure)
    }

    async fn ask(&self, manager: &str) -> Result<Answer, String> {
        let channel = dial_address(manager, &self.transport).await.map_err(|error| chain(&error))?;
        let request = proto::RenewRequest {
            service_id: self.bearer.id.to_string(),
            certificate_request: self.key.request().map_err(|error| error.to_string())?,
            addresses: Some((&self.addresses).into()),
        };
        let answer = EnrollmentClient::new(channel).renew(request).await;
        let answer = answer.map_err(|status| Fault::from(status).message)?.into_inner();
        if answer.removed {
            return Ok(Answer::Removed);
        }
        let credentials = credentials_of(self.key.clone(), answer.certificate, self.bearer);
        credentials.map(Answer::Certified).map_err(|fault| fault.message)
    }
}
