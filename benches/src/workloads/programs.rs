//! Real programs that work in a mount: tar, dpkg, git, a compiler, rm.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::write::in_new_dir;
use super::{Scene, Stage, amount, everybody, row};
use crate::contestants::on_path;
use crate::plan::{Group, Sizes};
use crate::scratch::Scratch;
use crate::stack::{Kind, Noise};

/// Files that are compiled.
const UNITS: usize = 40;
/// Files in each directory of the source tree.
const IN_EACH: u32 = 25;

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let files = amount(sizes.sources);
    vec![
        Scene {
            rows: vec![row("program.tar", format!("tar x of {files} files")), row("program.rm", "rm -r of them")],
            possible: |_| need(&["tar", "rm"]),
            ..scene("tar and rm", 6.0, |stage, dir| {
                let archive = sources(stage)?.join("tree.tar");
                stage.time("program.tar", || {
                    run(Command::new("tar").arg("-C").arg(dir).arg("-xf").arg(&archive).arg("--no-same-owner"))
                })?;
                stage.time("program.rm", || run(Command::new("rm").arg("-r").arg(dir.join("tree"))))
            })
        },
        Scene {
            rows: vec![row("program.dpkg", format!("dpkg -x of a package of {files} files"))],
            possible: |_| need(&["dpkg-deb"]),
            ..scene("dpkg", 6.0, |stage, dir| {
                let package = package(stage)?;
                stage.time("program.dpkg", || run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(dir)))
            })
        },
        Scene {
            rows: vec![row("program.git", format!("git clone of {files} files"))],
            possible: |_| need(&["git"]),
            ..scene("git", 5.0, |stage, dir| {
                let repository = repository(stage)?;
                stage.time("program.git", || {
                    run(git().args(["clone", "--quiet", "--no-local"]).arg(&repository).arg(dir.join("clone")))
                })
            })
        },
        Scene {
            rows: vec![row("program.cc", format!("cc of {UNITS} files"))],
            possible: |_| need(&["cc"]),
            ..scene("compiler", 5.0, compile)
        },
    ]
}

fn scene(name: &str, weight: f64, play: impl Fn(&mut Stage<'_>, &Path) -> Result<()> + 'static) -> Scene {
    Scene {
        group: Group::Programs,
        name: name.into(),
        stack: Kind::Image,
        rows: Vec::new(),
        weight,
        fits: everybody,
        possible: super::always,
        play: Box::new(move |stage| in_new_dir(stage, |stage, dir| play(stage, dir))),
    }
}

fn need(programs: &[&str]) -> Result<(), &'static str> {
    match programs.iter().all(|name| on_path(name).is_some()) {
        true => Ok(()),
        false => Err("the program is not installed here"),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| name.clone())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}: {}", output.status, said.lines().last().unwrap_or_default());
    }
    Ok(())
}

fn git() -> Command {
    let mut git = Command::new("git");
    // Whoever runs this may have settings of their own.
    git.envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")]);
    git.args(["-c", "user.name=plyfs", "-c", "user.email=plyfs@localhost", "-c", "init.defaultBranch=main"]);
    git
}

/// Makes something once for a run, in a directory beside the mounts.
fn once(scratch: &Scratch, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = scratch.dir().join(name);
    if !dir.exists() {
        let new = scratch.dir().join(format!("{name}.new"));
        fs::create_dir(&new)?;
        make(&new)?;
        fs::rename(&new, &dir)?;
        scratch.sync()?;
    }
    Ok(dir)
}

/// Makes a source tree, and its archive: files of about 4 KiB in directories of 25.
fn sources(stage: &Stage<'_>) -> Result<PathBuf> {
    let files = stage.sizes.sources;
    once(stage.scratch, "sources", |dir| {
        let tree = dir.join("tree");
        let mut noise = Noise::new(11);
        for number in 0..files {
            let parent = tree.join(format!("module{}", number / IN_EACH));
            if number % IN_EACH == 0 {
                fs::create_dir_all(&parent)?;
            }
            let size = noise.next() % 8192;
            let mut text = vec![0; size as usize];
            noise.read_exact(&mut text)?;
            fs::write(parent.join(format!("file{number}.txt")), text)?;
        }
        run(Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(dir.join("tree.tar")).arg("tree"))
    })
}

fn package(stage: &Stage<'_>) -> Result<PathBuf> {
    let tree = sources(stage)?.join("tree");
    let dir = once(stage.scratch, "package", |dir| {
        let root = dir.join("root");
        fs::create_dir_all(root.join("DEBIAN"))?;
        let control = "Package: plyfs-bench\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: files\n";
        fs::write(root.join("DEBIAN/control"), control)?;
        run(Command::new("cp").arg("-r").arg(&tree).arg(root.join("tree")))?;
        run(Command::new("dpkg-deb").args(["-Zgzip", "-b"]).arg(&root).arg(dir.join("files.deb")))
    })?;
    Ok(dir.join("files.deb"))
}

fn repository(stage: &Stage<'_>) -> Result<PathBuf> {
    let tree = sources(stage)?.join("tree");
    let dir = once(stage.scratch, "repository", |dir| {
        let work = dir.join("work");
        run(Command::new("cp").arg("-r").arg(&tree).arg(&work))?;
        run(git().args(["init", "--quiet"]).arg(&work))?;
        run(git().arg("-C").arg(&work).args(["add", "."]))?;
        run(git().arg("-C").arg(&work).args(["commit", "--quiet", "-m", "files"]))
    })?;
    Ok(dir.join("work"))
}

/// Compiles file after file, as make does without jobs; sources and objects lie in the mount.
fn compile(stage: &mut Stage<'_>, dir: &Path) -> Result<()> {
    for unit in 0..UNITS {
        let own = dir.join(format!("unit{unit}.c"));
        let text = format!(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include \"all.h\"\n\
             int unit{unit}(int n) {{ char *text = malloc(SIZE); if (!text) return 0;\n\
             memset(text, n, SIZE); n = text[n % SIZE]; free(text); return n + {unit}; }}\n"
        );
        fs::write(own, text)?;
    }
    fs::write(dir.join("all.h"), "#define SIZE 4096\n")?;
    stage.time("program.cc", || {
        (0..UNITS).try_for_each(|unit| {
            let object = dir.join(format!("unit{unit}.o"));
            run(Command::new("cc").current_dir(dir).args(["-O1", "-c", &format!("unit{unit}.c"), "-o"]).arg(object))
        })
    })
}
