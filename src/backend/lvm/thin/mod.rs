//! What LVM does not say of a thin pool, and the kernel does: how full it is without a report, and which chunks of its
//! volumes are mapped. [`mapper`] asks the kernel, [`metadata`] reads what the pool keeps on disk, [`survey`] has both
//! done, and sees to it that nothing is left behind.

pub mod mapper;
pub mod metadata;
pub mod survey;
