mod copies;
mod kill_points;
mod machine;
mod model;
mod pools;
mod sequences;
mod snapshots;
