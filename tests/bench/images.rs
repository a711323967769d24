//! How fast images come in, beside `qemu-img convert` of the same file to a file on the same disk.

use super::figures::Figures;
use super::processes::Cloud;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Of the disk, in MiB; half of it is data that does not compress to nothing.
const SIZE: u64 = 1024;
const ROUNDS: usize = 3;

pub fn measure(binary: &Path, cloud: &Cloud, figures: &mut Figures) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("symphony-bench").tempdir_in("/var/tmp")?;
    let raw = dir.path().join("disk.raw");
    write_disk(&raw)?;
    let path = |name: &str| dir.path().join(name);
    let forms: [(&str, PathBuf, &[&str]); 3] = [
        ("raw", raw.clone(), &[]),
        ("qcow2", path("plain.qcow2"), &["-O", "qcow2"]),
        ("qcow2, zlib", path("packed.qcow2"), &["-c", "-O", "qcow2"]),
    ];
    for (form, file, options) in forms {
        if !options.is_empty() {
            run(Command::new("qemu-img").args(["convert", "-f", "raw"]).args(options).arg(&raw).arg(&file))?;
        }
        let (mut ours, mut theirs) = (f64::MAX, f64::MAX);
        for round in 0..ROUNDS {
            let (name, copy) = (format!("bench-{round}"), path("copy.raw"));
            let ctl = || {
                let mut command = Command::new(binary);
                command.arg("ctl").arg("--socket").arg(&cloud.socket);
                command
            };
            ours = ours.min(timed(ctl().args(["image", "import", "--name", &name]).arg(&file))?);
            run(ctl().args(["image", "remove", &name]))?;
            theirs = theirs.min(timed(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&file).arg(&copy))?);
            std::fs::remove_file(&copy).with_context(|| format!("removing {}", copy.display()))?;
        }
        let rate = |seconds: f64| SIZE as f64 / seconds;
        figures.add(format!("image import, {form}: sent, compared and durable"), rate(ours), "MiB/s", None);
        figures.add(format!("qemu-img convert of the same to a raw file, {form}"), rate(theirs), "MiB/s", None);
    }
    Ok(())
}

/// Runs of data and of nothing by turns; on the medium, so that nobody's measurement pays for it.
fn write_disk(path: &Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    let mut random = fastrand::Rng::with_seed(7);
    for mebibyte in 0..SIZE {
        let mut bytes = vec![0; 1 << 20];
        if mebibyte % 16 < 8 {
            // As compressible as programs are, more or less.
            bytes.chunks_mut(4).for_each(|word| word.copy_from_slice(&(random.u32(..) & 0x0f0f_ff0f).to_le_bytes()));
            file.write_all(&bytes)?;
        } else {
            std::io::Seek::seek_relative(&mut file, 1 << 20)?;
        }
    }
    file.set_len(SIZE << 20)?;
    Ok(file.sync_all()?)
}

fn timed(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    run(command)?;
    Ok(began.elapsed().as_secs_f64())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    match output.status.success() {
        true => Ok(()),
        false => bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}
