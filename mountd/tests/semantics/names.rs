//! Names: long ones, odd ones, those that mean something elsewhere.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use crate::area::each;
use crate::tree::*;

#[test]
fn names_of_255_bytes_work_for_everything() {
    each(|area| {
        let name = |c: char| c.to_string().repeat(255);
        for c in ['a', 'b', 'c', 'g'] {
            file(&area.lower(&name(c)), 1000);
        }
        dir(&area.lower(&name('d')));
        put(&area.lower(&name('d')).join(name('e')), "e");
        file(&area.lower(&name('l')), 8 << 20);
        area.mount();
        let m = |c: char| area.m(&name(c));
        put(&m('n'), "new");
        open_rw(&m('a')).write_all_at(b"!", 0).unwrap();
        std::fs::rename(m('b'), m('r')).unwrap();
        std::fs::remove_file(m('c')).unwrap();
        std::fs::rename(m('d'), m('f')).unwrap();
        std::fs::hard_link(m('g'), m('h')).unwrap();
        std::os::unix::fs::symlink(name('t'), m('s')).unwrap();
        open_rw(&m('l')).write_all_at(b"!", 5000).unwrap();
        dir(&m('c'));
        let seen = || names(&area.m("")).iter().map(|name| name.chars().next().unwrap()).collect::<String>();
        assert_eq!(seen(), "acfghlnrs");
        area.remount();
        assert_eq!(seen(), "acfghlnrs");
        assert_eq!(text(&m('f').join(name('e'))), "e");
    });
}

#[test]
fn names_of_256_bytes_are_too_long() {
    each(|area| {
        put(&area.lower("f"), "x");
        area.mount();
        let long = area.m(&"x".repeat(256));
        assert_eq!(std::fs::File::create(&long).errno(), libc::ENAMETOOLONG);
        assert_eq!(std::fs::metadata(&long).errno(), libc::ENAMETOOLONG);
        assert_eq!(std::fs::create_dir(&long).errno(), libc::ENAMETOOLONG);
        assert_eq!(std::fs::rename(area.m("f"), &long).errno(), libc::ENAMETOOLONG);
        assert_eq!(std::fs::hard_link(area.m("f"), &long).errno(), libc::ENAMETOOLONG);
        assert_eq!(rustix::fs::statvfs(area.m("")).unwrap().f_namemax, 255);
    });
}

#[test]
fn names_need_not_be_utf8() {
    each(|area| {
        let odd = [&b"\xff\xfe"[..], b"new\nline", b"tab\t", b"back\\slash", b" ", b"..."];
        for name in odd {
            std::fs::write(area.lower("").join(OsStr::from_bytes(name)), name).unwrap();
        }
        area.mount();
        for name in odd {
            let path = area.m("").join(OsStr::from_bytes(name));
            assert_eq!(std::fs::read(&path).unwrap(), name);
            std::fs::write(&path, b"changed").unwrap();
            let longer = area.m("").join(OsStr::from_bytes(&[name, b"+"].concat()));
            std::fs::rename(&path, &longer).unwrap();
        }
        area.remount();
        assert_eq!(list(&area.m("")).len(), odd.len());
        for name in odd {
            assert_eq!(std::fs::read(area.m("").join(OsStr::from_bytes(&[name, b"+"].concat()))).unwrap(), b"changed");
        }
    });
}

#[test]
fn names_that_are_whiteouts_elsewhere_are_ordinary_in_a_mount() {
    each(|area| {
        put(&area.lower("x"), "below");
        dir(&area.lower("d"));
        put(&area.lower("d/y"), "below");
        area.mount();
        put(&area.m(".wh.x"), "a file");
        put(&area.m("d/.wh..wh..opq"), "another");
        dir(&area.m(".wh.dir"));
        put(&area.m(".wh.dir/.wh.f"), "f");
        let check = || {
            assert_eq!(names(&area.m("")), [".wh.dir", ".wh.x", "d", "x"]);
            assert_eq!(names(&area.m("d")), [".wh..wh..opq", "y"]);
            assert_eq!(
                (text(&area.m(".wh.x")), text(&area.m("x")), text(&area.m("d/y"))),
                ("a file".into(), "below".into(), "below".into())
            );
            assert_eq!(text(&area.m(".wh.dir/.wh.f")), "f");
        };
        check();
        area.remount();
        check();
        std::fs::rename(area.m(".wh.x"), area.m(".wh.y")).unwrap();
        std::fs::remove_file(area.m("x")).unwrap();
        area.crash();
        assert_eq!(names(&area.m("")), [".wh.dir", ".wh.y", "d"]);
    });
}

#[test]
fn an_upper_is_left_in_the_aufs_form_and_used_again() {
    each(|area| {
        area.set_options("plyfs.leave=aufs");
        for name in ["gone", "keep", "d/below"] {
            dir(area.lower(name).parent().unwrap());
            put(&area.lower(name), "below");
        }
        area.mount();
        std::fs::remove_file(area.m("gone")).unwrap();
        std::fs::remove_dir_all(area.m("d")).unwrap();
        dir(&area.m("d"));
        put(&area.m("d/new"), "above");
        area.unmount();
        assert_eq!(names(&area.upper("")), [".wh.gone", "d"]);
        assert_eq!(names(&area.upper("d")), [".wh..wh..opq", "new"]);
        area.mount();
        assert_eq!(
            (names(&area.m("")), names(&area.m("d"))),
            (vec!["d".into(), "keep".into()], vec!["new".to_owned()])
        );
        put(&area.m("d/new"), "changed");
        area.unmount();
        assert_eq!(names(&area.upper("")), [".wh.gone", "d"]);
        assert_eq!(names(&area.upper("d")), [".wh..wh..opq", "new"]);
    });
}

#[test]
fn names_of_our_own_are_ordinary_in_a_mount() {
    each(|area| {
        for name in ["work", "plyfs", "index", "lost+found", "#1"] {
            dir(&area.lower(name));
            put(&area.lower(name).join("tmp"), "x");
        }
        area.mount();
        for name in ["work", "plyfs", "index", "lost+found", "#1"] {
            put(&area.m(name).join("new"), "x");
            assert_eq!(names(&area.m(name)), ["new", "tmp"]);
        }
    });
}

#[test]
fn symlinks_are_never_followed_inside_the_daemon() {
    each(|area| {
        // Links to themselves, into the mount, out of it.
        put(&area.path("outside"), "outside");
        for (name, target) in
            [("self", "self".to_owned()), ("root", "/".to_owned()), ("dots", "../../../../../etc/passwd".to_owned())]
        {
            std::os::unix::fs::symlink(target, area.lower(name)).unwrap();
        }
        std::os::unix::fs::symlink(area.m("dir"), area.lower("into")).unwrap();
        std::os::unix::fs::symlink(area.path("outside"), area.lower("out")).unwrap();
        dir(&area.lower("dir"));
        area.mount();
        let before = (mtime(area.path("outside")), xattrs(&area.path("outside")));
        for name in ["self", "root", "dots", "into", "out"] {
            let link = area.m(name);
            assert!(matches!(set_xattr(&link, "user.x", b"1").errno(), libc::EPERM | libc::EOPNOTSUPP), "{name}");
            set_times(&link, 11, 12);
            std::os::unix::fs::lchown(&link, Some(0), Some(0)).unwrap();
            assert_eq!(mtime(&link), (11, 12));
            std::fs::rename(&link, area.m(&format!("dir/{name}"))).unwrap();
            assert!(meta(area.m(&format!("dir/{name}"))).is_symlink());
        }
        assert_eq!((mtime(area.path("outside")), xattrs(&area.path("outside"))), before);
        assert_eq!(std::fs::read(area.m("dir/self")).errno(), libc::ELOOP);
    });
}

#[test]
fn long_symlink_targets_come_back_whole() {
    each(|area| {
        let long = "x/".repeat(500) + "y";
        std::os::unix::fs::symlink(&long, area.lower("below")).unwrap();
        area.mount();
        std::os::unix::fs::symlink(&long, area.m("above")).unwrap();
        for name in ["below", "above"] {
            assert_eq!(std::fs::read_link(area.m(name)).unwrap().to_str(), Some(&*long));
            assert_eq!(meta(area.m(name)).len(), long.len() as u64);
        }
    });
}
