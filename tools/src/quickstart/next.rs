//! What to type after the quickstart.

use std::path::Path;

use store::{Container, Image, Store};

use super::Place;
use super::scene::Scene;
use crate::namespace::on_path;

/// A command and what it does.
type Line = (String, &'static str);

/// With everything still there.
pub(super) fn after_keeping(scene: &Scene, place: Place, image: &Image, [red, blue]: [&Container; 2]) -> Vec<Line> {
    let root = scene.store().root();
    let plyfs = match root == Store::default_root() {
        true => command_name(),
        false => format!("{} --root {}", command_name(), root.display()),
    };
    let (one, other, dir) = (&red.name, &blue.name, scene.dir_of(red).display().to_string());
    let mut lines = match place {
        Place::Outside => vec![
            (format!("ls {dir}"), "look around in a container"),
            (format!("{plyfs} diff {one}"), "see what it changed"),
            (format!("{plyfs} umount {one} {other} {}", scene.image_dir().display()), "unmount"),
        ],
        Place::Namespace => vec![
            (format!("{plyfs} unshare"), "a shell where you may mount; then in it:"),
            (format!("{plyfs} mount {one} {dir}"), "mount a container, and look around"),
            (format!("{plyfs} diff {one}"), "see what it changed"),
        ],
    };
    lines.push((format!("{plyfs} rm {one} {other}"), "remove the containers"));
    lines.push((format!("{plyfs} rmi {}", image.label()), "remove the image"));
    lines.push((format!("rm -r {}", scene.dir().display()), "remove the mount points"));
    lines
}

/// With nothing left.
pub(super) fn after_clearing(place: Place) -> Vec<Line> {
    let plyfs = command_name();
    let mut lines = vec![
        (format!("{plyfs} quickstart --keep"), "the same, and leave it there to look around"),
        (format!("{plyfs} sample | {plyfs} load"), "load the sample into your store"),
        (format!("{plyfs} load oci:DIR:NAME"), "or an image of yours (skopeo copy docker://redis oci:DIR:redis)"),
        (format!("{plyfs} create plyfs/sample --name one"), "make a container"),
    ];
    if place == Place::Namespace {
        lines.push((format!("{plyfs} unshare"), "a shell where you may mount; then in it:"));
    }
    lines.push((format!("mkdir /tmp/one && {plyfs} mount one /tmp/one"), "mount it"));
    lines.push((format!("{plyfs} diff one"), "see what it changed"));
    lines.push((format!("{plyfs} umount one"), "unmount it"));
    lines
}

/// Returns how to call this program from where the user is: `plyfs` if the shell finds it, else a path.
fn command_name() -> String {
    let Ok(program) = std::env::current_exe() else { return "plyfs".to_string() };
    let is_found = on_path("plyfs").and_then(|path| path.canonicalize().ok()) == Some(program.clone());
    let relative = std::env::current_dir().ok().and_then(|dir| program.strip_prefix(dir).ok().map(Path::to_path_buf));
    match (is_found, relative) {
        (true, _) => "plyfs".to_string(),
        (false, Some(path)) if path.components().count() == 1 => format!("./{}", path.display()),
        (false, Some(path)) => path.display().to_string(),
        (false, None) => program.display().to_string(),
    }
}
