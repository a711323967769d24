//! `ctl check`

use super::connect::{Session, answer};
use super::failure::Failure;
use super::output;
use crate::rpc::proto;
use anyhow::Result;
use serde_json::json;

pub async fn run(session: &Session) -> Result<()> {
    let mut manager = session.manager().await?;
    let found = answer(manager.client.check(proto::CheckRequest {}).await, "manager")?;
    let document = json!({
        "faults": found.faults,
        "remarks": found.remarks,
        "objects_checked": found.objects_checked,
        "services_asked": found.services_asked,
    });
    let verdict = if found.faults.is_empty() { "consistent" } else { "inconsistent" };
    output::one(session.format, &document, verdict, |_| {
        let faults: String = found.faults.iter().map(|fault| format!("fault: {fault}\n")).collect();
        let remarks: String = found.remarks.iter().map(|remark| format!("note: {remark}\n")).collect();
        format!(
            "{faults}{remarks}{verdict}: {} objects, {} block services asked\n",
            found.objects_checked, found.services_asked
        )
    })?;
    match found.faults.len() {
        0 => Ok(()),
        1 => Err(Failure::Unfulfilled("1 fault was found".into()).into()),
        many => Err(Failure::Unfulfilled(format!("{many} faults were found")).into()),
    }
}
