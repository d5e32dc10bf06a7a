//! `plyfs install-links`: the names by which runtimes and mount(8) look for `plyfs-mountd`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use crate::cli::InstallLinksArgs;
use crate::snapshotter;

/// What the program is called where it stands in for another, or for mount(8).
pub(crate) const NAMES: [&str; 3] = ["fuse-overlayfs", "mount.fuse3.plyfs", "mount.fuse.plyfs"];

/// `plyfs install-links`
pub(crate) fn install(args: &InstallLinksArgs, out: &mut dyn Write) -> Result<()> {
    let program = match &args.program {
        Some(path) => fs::canonicalize(path).map_err(|error| on(path, &error))?,
        None => snapshotter::find_program()
            .ok_or_else(|| anyhow!("plyfs-mountd: not found beside plyfs or in PATH; name it with --program"))?,
    };
    if !args.dir.is_dir() {
        bail!("{}: no directory; make it first", args.dir.display());
    }
    let is_wanted = |name: &&str| args.names.is_empty() || args.names.iter().any(|wanted| wanted == name);
    let links: Vec<PathBuf> = NAMES.iter().filter(|name| is_wanted(name)).map(|name| args.dir.join(name)).collect();
    if !args.force
        && let Some(taken) = links.iter().find(|link| link.symlink_metadata().is_ok() && !leads_to(link, &program))
    {
        bail!(
            "{}: there already, and something else; replace it with --force, or use another directory",
            taken.display()
        );
    }
    for link in &links {
        if !leads_to(link, &program) {
            place(link, &program).map_err(|error| on(link, &error))?;
        }
        writeln!(out, "{} -> {}", link.display(), program.display())?;
    }
    Ok(())
}

fn on(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow!("{}: {}", path.display(), crate::reason(error))
}

fn leads_to(link: &Path, program: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target == program)
}

/// Puts the link in its place at once, whatever was there.
fn place(link: &Path, program: &Path) -> io::Result<()> {
    let beside = link.with_extension(format!("new-{}", std::process::id()));
    symlink(program, &beside)?;
    fs::rename(&beside, link).inspect_err(|_| {
        // Already failing: what stays is a link of ours beside it.
        fs::remove_file(&beside).ok();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_once_and_nothing_else_is_replaced_unasked() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("bin");
        let program = fs::canonicalize(scratch.path()).unwrap().join("plyfs-mountd");
        fs::create_dir(&dir).unwrap();
        fs::write(&program, b"").unwrap();
        let mut args =
            InstallLinksArgs { dir: dir.clone(), names: vec![], program: Some(program.clone()), force: false };
        let said = |args: &InstallLinksArgs| {
            let mut out = Vec::new();
            install(args, &mut out).map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
        };
        let names = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(said(&args).unwrap().lines().count(), 3);
        assert_eq!(said(&args).unwrap().lines().count(), 3, "once more");
        assert_eq!(names(&dir), ["fuse-overlayfs", "mount.fuse.plyfs", "mount.fuse3.plyfs"]);
        for name in NAMES {
            assert_eq!(fs::read_link(dir.join(name)).unwrap(), program);
        }

        fs::remove_file(dir.join("mount.fuse.plyfs")).unwrap();
        fs::remove_file(dir.join("fuse-overlayfs")).unwrap();
        fs::write(dir.join("fuse-overlayfs"), b"another").unwrap();
        let refused = said(&args).unwrap_err();
        assert!(refused.contains("fuse-overlayfs: there already"), "{refused}");
        assert_eq!(names(&dir), ["fuse-overlayfs", "mount.fuse3.plyfs"], "nothing was done");
        args.force = true;
        said(&args).unwrap();
        assert_eq!(fs::read_link(dir.join("fuse-overlayfs")).unwrap(), program);
        fs::remove_file(dir.join("fuse-overlayfs")).unwrap();
        args.names = vec!["mount.fuse.plyfs".to_owned()];
        assert_eq!(said(&args).unwrap().lines().count(), 1);
        assert_eq!(names(&dir), ["mount.fuse.plyfs", "mount.fuse3.plyfs"], "only what was asked for");
        args.dir = scratch.path().join("none");
        assert!(said(&args).unwrap_err().contains("no directory"));
    }
}
