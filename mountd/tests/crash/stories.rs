//! What the storms found, told one by one.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::stage::Stage;

/// A mount over a lower with some files; `None` where it cannot be.
fn mounted(name: &str, disk: Option<&'static str>) -> Option<Stage> {
    if let Err(why) = super::can_run(disk) {
        super::skip(name, &why);
        return None;
    }
    let mut stage = Stage::new(disk);
    let lower = stage.lower();
    std::fs::write(lower.join("small"), vec![b's'; 10_000]).unwrap();
    std::fs::write(lower.join("medium"), vec![b'm'; 2 << 20]).unwrap();
    std::fs::write(lower.join("large"), vec![b'l'; 8 << 20]).unwrap();
    std::fs::write(lower.join("linked"), b"below").unwrap();
    std::fs::create_dir(lower.join("dir")).unwrap();
    std::fs::create_dir(lower.join("deep")).unwrap();
    std::fs::write(lower.join("deep/inner"), vec![b'i'; 10_000]).unwrap();
    std::fs::hard_link(lower.join("linked"), lower.join("dir/other")).unwrap();
    stage.fresh_upper();
    stage.mount("");
    Some(stage)
}

fn killed(stage: &mut Stage) {
    stage.kill();
    stage.clear();
    stage.mount("");
}

fn cut(stage: &mut Stage) {
    stage.cut();
    stage.kill();
    stage.clear();
    stage.power_on();
    stage.mount("");
}

fn file(stage: &Stage, name: &str) -> PathBuf {
    stage.path("mount").join(name)
}

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Its length had been noted when it was copied up, and a shorter file was taken for one whose body was lost.
#[test]
fn copy_that_is_cut_later_stays_cut_after_a_crash() {
    let Some(mut stage) = mounted("copy_that_is_cut_later_stays_cut_after_a_crash", None) else { return };
    let small = file(&stage, "small");
    writable(&small).write_all_at(b"x", 0).unwrap();
    std::fs::write(&small, b"new").unwrap();
    killed(&mut stage);
    assert_eq!(std::fs::read(&small).unwrap(), b"new", "emptied by open");

    std::fs::remove_file(&small).unwrap();
    std::fs::rename(file(&stage, "medium"), &small).unwrap();
    writable(&small).write_all_at(b"x", 0).unwrap();
    killed(&mut stage);
    // By the mount after the one that copied it.
    writable(&small).set_len(5).unwrap();
    killed(&mut stage);
    assert_eq!(std::fs::read(&small).unwrap(), b"xmmmm", "cut after a remount");
    stage.unmount();
}

/// The search for a file of the index by its number found nothing before its directory was read.
#[test]
fn hard_link_of_plain_directories_keeps_its_content_over_a_crash_and_at_rest() {
    let name = "hard_link_of_plain_directories_keeps_its_content_over_a_crash_and_at_rest";
    let Some(mut stage) = mounted(name, None) else { return };
    writable(&file(&stage, "linked")).write_all_at(b"above", 0).unwrap();
    killed(&mut stage);
    for name in ["dir/other", "linked"] {
        assert_eq!(std::fs::read(file(&stage, name)).unwrap(), b"above", "{name}");
    }
    stage.unmount();
    stage.mount_by_kernel();
    for name in ["dir/other", "linked"] {
        assert_eq!(std::fs::read(stage.path("kernel").join(name)).unwrap(), b"above", "{name} by kernel overlayfs");
    }
    stage.unmount_kernel();
}

/// Nothing was synced for a copy whose body is below.
#[test]
fn fsync_keeps_a_change_of_mode_alone() {
    let Some(mut stage) = mounted("fsync_keeps_a_change_of_mode_alone", Some("ext4")) else { return };
    for name in ["medium", "large"] {
        let path = file(&stage, name);
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
    }
    cut(&mut stage);
    for name in ["medium", "large"] {
        assert_eq!(std::fs::metadata(file(&stage, name)).unwrap().permissions().mode() & 0o7777, 0o600, "{name}");
    }
    stage.unmount();
}

/// The copy was on disk, so that fdatasync found nothing to do; its name was not.
#[test]
fn first_fdatasync_of_a_copy_keeps_its_name() {
    let Some(mut stage) = mounted("first_fdatasync_of_a_copy_keeps_its_name", Some("ext4")) else { return };
    for name in ["small", "medium", "large", "linked"] {
        let open = writable(&file(&stage, name));
        open.write_all_at(b"x", 0).unwrap();
        open.sync_data().unwrap();
    }
    cut(&mut stage);
    for name in ["small", "medium", "large", "linked"] {
        assert_eq!(std::fs::read(file(&stage, name)).unwrap()[0], b'x', "{name}");
    }
    stage.unmount();
}

/// The lower is found again by what was noted on the copy, not by its new name.
#[test]
fn renamed_copy_whose_body_is_lost_falls_back_to_its_lower_file() {
    let name = "renamed_copy_whose_body_is_lost_falls_back_to_its_lower_file";
    let Some(mut stage) = mounted(name, Some("ext4")) else { return };
    writable(&file(&stage, "small")).write_all_at(b"x", 9_999).unwrap();
    std::fs::rename(file(&stage, "small"), file(&stage, "dir/moved")).unwrap();
    // The names, and not the data.
    File::open(file(&stage, "dir")).unwrap().sync_all().unwrap();
    cut(&mut stage);
    let found = std::fs::read(file(&stage, "dir/moved")).unwrap();
    let is_written = [b's', b'x'].contains(&found[9_999]);
    assert!(found.len() == 10_000 && found[..9_999].iter().all(|byte| *byte == b's') && is_written, "{}", found.len());
    assert!(!file(&stage, "small").exists());
    stage.unmount();
}

/// A copy's own name tells where it came from, until it gets another one, or its directory does.
#[test]
fn copy_whose_body_is_lost_falls_back_by_another_link_and_in_a_moved_directory() {
    let name = "copy_whose_body_is_lost_falls_back_by_another_link_and_in_a_moved_directory";
    let Some(mut stage) = mounted(name, Some("ext4")) else { return };
    for name in ["small", "deep/inner"] {
        writable(&file(&stage, name)).write_all_at(b"x", 9_999).unwrap();
    }
    std::fs::hard_link(file(&stage, "small"), file(&stage, "dir/alias")).unwrap();
    std::fs::remove_file(file(&stage, "small")).unwrap();
    std::fs::rename(file(&stage, "deep"), file(&stage, "dir/deep")).unwrap();
    // The names, and not the data.
    File::open(file(&stage, "dir")).unwrap().sync_all().unwrap();
    cut(&mut stage);
    for (name, byte) in [("dir/alias", b's'), ("dir/deep/inner", b'i')] {
        let found = std::fs::read(file(&stage, name)).unwrap();
        let is_written = [byte, b'x'].contains(&found[9_999]);
        assert!(found.len() == 10_000 && found[..9_999].iter().all(|is| *is == byte) && is_written, "{name}");
    }
    assert!(!file(&stage, "small").exists() && !file(&stage, "deep").exists());
    stage.unmount();
}
