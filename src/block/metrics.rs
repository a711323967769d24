//! What a block service tells monitoring of itself.

use super::link::LinkState;
use super::serve::{Block, Stage};
use crate::runtime::metrics::Page;

pub fn fill(block: &Block, page: &mut Page) {
    let connected = matches!(block.stage(), Stage::Member(active) if matches!(active.link(), LinkState::Connected(_)));
    page.gauge(
        "block_connected",
        "1 if this block service has a session with a manager",
        [(vec![], f64::from(u8::from(connected)))],
    );
    let expiry = block.keyring.expires_at().map(|at| (vec![], at.as_millis() as f64 / 1000.0));
    page.gauge(
        "block_certificate_expiry_timestamp_seconds",
        "When this service's certificate expires, in seconds since 1970",
        expiry,
    );
}
