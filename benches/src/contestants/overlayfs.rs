//! The kernel's overlayfs.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

use super::Place;
use crate::machine;

/// mount(2) takes one page of options.
const OPTIONS_MAX: usize = 4000;

/// Spells the options for `layers`, topmost first.
fn spell_options(layers: &[PathBuf], place: &Place, options: &str) -> Vec<u8> {
    let lower: Vec<&[u8]> = layers.iter().map(|layer| layer.as_os_str().as_bytes()).collect();
    let mut text = b"lowerdir=".to_vec();
    text.extend(lower.join(&b':'));
    for (name, path) in [(&b",upperdir="[..], &place.upper), (b",workdir=", &place.work)] {
        text.extend(name);
        text.extend(path.as_os_str().as_bytes());
    }
    for option in all_options(options) {
        text.push(b',');
        text.extend(option.as_bytes());
    }
    text
}

/// Without the host's privileges, marks must be kept in xattrs of the user.
fn all_options(options: &str) -> impl Iterator<Item = &str> {
    let user = (!machine::is_host_namespace()).then_some("userxattr");
    options.split(',').filter(|option| !option.is_empty()).chain(user)
}

/// Mounts `layers`, topmost first.
pub(super) fn mount_stack(layers: &[PathBuf], place: &Place, options: &str) -> Result<()> {
    let text = spell_options(layers, place, options);
    if text.len() < OPTIONS_MAX {
        let text = CString::new(text)?;
        return mount("overlay", &place.mnt, "overlay", MountFlags::empty(), Some(&*text)).context("mount overlay");
    }
    mount_by_steps(layers, place, options).context("mount overlay with many layers")
}

/// Gives the kernel one option after the other; `lowerdir+` came with 6.5.
fn mount_by_steps(layers: &[PathBuf], place: &Place, options: &str) -> Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    fsconfig_set_string(&context, "upperdir", &place.upper)?;
    fsconfig_set_string(&context, "workdir", &place.work)?;
    for option in all_options(options) {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(&context, name, value)?,
            None => fsconfig_set_flag(&context, option)?,
        }
    }
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(move_mount(&mounted, "", CWD, &place.mnt, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
