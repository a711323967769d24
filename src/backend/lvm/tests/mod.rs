mod copies;
mod growth;
mod kill_points;
pub mod machine;
mod model;
mod pools;
mod sequences;
mod snapshots;
mod wipes;
