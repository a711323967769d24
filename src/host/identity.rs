//! `identity.json` as a document.

use super::document::Document;
use crate::model::Identity;

impl Document for Identity {
    const FORMAT: &'static str = "symphony identity";
    const VERSION: u32 = 1;
}
