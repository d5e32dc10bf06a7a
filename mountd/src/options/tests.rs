//! Tables of what the command line means.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

fn words(line: &[&str]) -> Result<Call, Failure> {
    parse(line)
}

fn mount(line: &[&str]) -> Options {
    match words(line) {
        Ok(Call::Mount(options)) => *options,
        other => panic!("{line:?}: {other:?}"),
    }
}

/// Reads `-o OPTS /m`.
fn with(options: &str) -> Options {
    mount(&["-o", options, "/m"])
}

fn refusal(options: &str) -> String {
    words(&["-o", options, "/m"]).expect_err(options).line().to_owned()
}

fn plain(options: &Options) -> Vec<&str> {
    match &options.lower {
        LowerDirs::Plain(dirs) => dirs.iter().map(|dir| dir.to_str().unwrap()).collect(),
        LowerDirs::Image(_) | LowerDirs::Layers(_) => panic!("an image"),
    }
}

fn upper(options: &Options) -> Option<(&str, &str)> {
    options.upper.as_ref().map(|dirs| (dirs.upper.to_str().unwrap(), dirs.work.to_str().unwrap()))
}

#[test]
fn words_stand_in_any_order() {
    for line in [
        &["-o", "lowerdir=/a", "/m"][..],
        &["/m", "-o", "lowerdir=/a"],
        &["-olowerdir=/a", "/m"],
        &["-o", "lowerdir=/a", "--", "/m"],
        &["-o", "ro", "/m", "-o", "lowerdir=/b", "-o", "rw,lowerdir=/a"],
    ] {
        let options = mount(line);
        assert_eq!((options.target.as_path(), plain(&options)), (Path::new("/m"), vec!["/a"]), "{line:?}");
        assert_eq!((options.stay, options.source), (Stay::Background, None), "{line:?}");
    }
    for line in [
        &["-f", "-olowerdir=/a", "/m"][..],
        &["/m", "-folowerdir=/a"],
        &["-fo", "lowerdir=/a", "/m"],
        &["--foreground", "/m", "-olowerdir=/a"],
    ] {
        assert_eq!((mount(line).stay, mount(line).debug), (Stay::Foreground, false), "{line:?}");
    }
    for line in
        [&["-d", "-olowerdir=/a", "/m"][..], &["--debug", "/m", "-olowerdir=/a"], &["/m", "-odebug,lowerdir=/a"]]
    {
        assert_eq!((mount(line).stay, mount(line).debug), (Stay::Foreground, true), "{line:?}");
    }
    assert_eq!(mount(&["-olowerdir=/a", "--", "-m"]).target, Path::new("-m"));
}

#[test]
fn source_may_stand_before_target() {
    for line in [
        &["overlay", "/m", "-o", "lowerdir=/a"][..],
        &["-o", "lowerdir=/a", "overlay", "/m"],
        &["overlay", "-o", "lowerdir=/a", "/m"],
    ] {
        let options = mount(line);
        assert_eq!(
            (options.source.as_deref(), options.target.as_path()),
            (Some(OsStr::new("overlay")), Path::new("/m"))
        );
    }
}

#[test]
fn help_and_version_win() {
    for word in ["--help", "-h", "-fh"] {
        assert_eq!(words(&[word]).unwrap(), Call::Help);
    }
    for word in ["--version", "-V"] {
        assert_eq!(words(&["-f", word, "-o", "nonsense"]).unwrap(), Call::Version);
    }
}

#[test]
fn wrong_words_are_named() {
    for (line, named) in [
        (&[][..], "no mount point"),
        (&["-o", "lowerdir=/a"], "no mount point"),
        (&["a", "b", "c"], "'c'"),
        (&["-x", "/m"], "'-x'"),
        (&["-fx", "/m"], "'-fx'"),
        (&["--nonsense", "/m"], "'--nonsense'"),
        (&["/m", "-o"], "-o needs"),
        (&["/m"], "lowerdir=DIR"),
    ] {
        let line_of_failure = words(line).unwrap_err();
        assert!(line_of_failure.line().contains(named), "{line:?}: {line_of_failure}");
    }
}

#[test]
fn podman_read_write_line_is_understood() {
    let line = "lowerdir=/var/g/overlay/l/AAA:/var/g/overlay/l/BBB,upperdir=/var/g/overlay/ID/diff,workdir=/var/g/overlay/ID/work,";
    let options = mount(&["-o", line, "/var/g/overlay/ID/merged"]);
    assert_eq!(plain(&options), ["/var/g/overlay/l/AAA", "/var/g/overlay/l/BBB"]);
    assert_eq!(upper(&options), Some(("/var/g/overlay/ID/diff", "/var/g/overlay/ID/work")));
    assert_eq!((options.durability, options.notes.len()), (Durability::Full, 0));

    let options = with(&format!("{line},volatile"));
    assert_eq!(options.durability, Durability::Volatile);
    assert_eq!(upper(&options), Some(("/var/g/overlay/ID/diff", "/var/g/overlay/ID/work")));
}

#[test]
fn podman_read_only_line_is_understood() {
    let options = with("lowerdir=/g/ID/diff:/g/l/BBB");
    assert_eq!((plain(&options), upper(&options)), (vec!["/g/ID/diff", "/g/l/BBB"], None));
}

#[test]
fn podman_user_namespace_line_is_understood() {
    let options = with(
        "lowerdir=l/A,upperdir=u,workdir=w,uidmapping=:0:100000:5000,gidmapping=:0:100000:5000,xattr_permissions=2,\
         context=\"system_u:object_r:container_file_t:s0:c1,c2\",private",
    );
    let range = IdRange { on_disk: 0, shown: 100_000, len: 5000 };
    assert_eq!((options.owners.uids.ranges(), options.owners.gids.ranges()), (&[range][..], &[range][..]));
    assert_eq!(options.xattr_permissions, XattrPermissions::User);
    assert_eq!(options.mount.contexts, ["context=\"system_u:object_r:container_file_t:s0:c1,c2\""]);
    assert_eq!(options.mount.propagation, Some(MountPropagationFlags::PRIVATE));
    assert_eq!((options.owners.uids.shown(4999), options.owners.uids.shown(5000)), (Some(104_999), None));
}

#[test]
fn containerd_line_is_understood() {
    let options =
        mount(&["overlay", "/run/m", "-o", "workdir=/s/1/work,upperdir=/s/1/fs,lowerdir=/s/3/fs:/s/2/fs,dev,suid"]);
    assert_eq!((plain(&options), upper(&options)), (vec!["/s/3/fs", "/s/2/fs"], Some(("/s/1/fs", "/s/1/work"))));
    assert_eq!(options.mount.flags.over(MountFlags::NODEV | MountFlags::NOSUID), MountFlags::empty());
}

#[test]
fn first_lower_is_topmost_up_to_a_thousand() {
    let list = |count: usize| {
        let dirs: Vec<_> = (0..count).map(|i| format!("/var/lib/containers/storage/overlay/l/{i:026}")).collect();
        format!("lowerdir={}", dirs.join(":"))
    };
    for count in [1, 500, MAX_LAYERS] {
        let options = with(&list(count));
        assert_eq!(plain(&options).len(), count);
        assert!(plain(&options)[0].ends_with("/00000000000000000000000000"));
    }
    assert!(refusal(&list(MAX_LAYERS + 1)).contains("1001 layers"));
}

#[test]
fn lowers_can_be_added_one_by_one() {
    assert_eq!(plain(&with("lowerdir+=/a:b,lowerdir+=/c,ro")), ["/a:b", "/c"]);
    assert_eq!(plain(&with("lowerdir=/a,lowerdir+=/b")), ["/a", "/b"]);
    assert_eq!(plain(&with("lowerdir=/a:/b,lowerdir=/c")), ["/c"], "the last lowerdir= wins");
}

#[test]
fn backslash_takes_the_next_byte_as_it_is() {
    for (given, dirs) in [
        (r"lowerdir=/a\:b:/c", &["/a:b", "/c"][..]),
        (r"lowerdir=/a\,b:/c", &["/a,b", "/c"]),
        (r"lowerdir=/a\\:/c", &[r"/a\", "/c"]),
        (r"lowerdir=/a\\\:b", &[r"/a\:b"]),
        (r"lowerdir=/a\\\,b", &[r"/a\,b"]),
        (r"lowerdir=/a\b", &["/ab"]),
        (r#"lowerdir="/a"#, &[r#""/a"#]),
        (r"lowerdir=/a=b", &["/a=b"]),
    ] {
        assert_eq!(plain(&with(given)), dirs, "{given}");
    }
    let options = with(r"lowerdir=/l,upperdir=/u\,1:2,workdir=/w\:1\\");
    assert_eq!(upper(&options), Some(("/u,1:2", r"/w:1\")));
    assert_eq!(plain(&with("lowerdir=/a\\")), ["/a\\"], "a backslash at the end is one");
}

#[test]
fn names_need_not_be_text() {
    let line = [OsStr::from_bytes(b"-olowerdir=/\xff\xfe"), OsStr::from_bytes(b"/m\xff")];
    let Call::Mount(options) = parse(&line).unwrap() else { panic!("no mount") };
    assert_eq!(options.lower, LowerDirs::Plain(vec![OsStr::from_bytes(b"/\xff\xfe").into()]));
    assert_eq!(options.target.as_os_str().as_bytes(), b"/m\xff");
}

#[test]
fn what_spell_writes_is_read_back() {
    let paths = ["/plain", "/a:b", "/a,b", r"/a\", r"/a\,:\\", "/a b\n"].map(Path::new);
    for path in paths {
        let options = parse(&[
            OsStr::new("-o"),
            &spell("plyfs.index", path),
            OsStr::new("-o"),
            &spell("plyfs.objects", path),
            OsStr::new("/m"),
        ]);
        let Ok(Call::Mount(options)) = options else { panic!("{options:?}") };
        let LowerDirs::Image(image) = options.lower else { panic!("plain") };
        assert_eq!((image.index.as_path(), image.objects.as_path()), (path, path));
    }
    let Ok(Call::Mount(options)) = parse(&[OsStr::new("-o"), &spell_list("lowerdir", paths), OsStr::new("/m")]) else {
        panic!("refused")
    };
    assert_eq!(options.lower, LowerDirs::Plain(paths.map(PathBuf::from).to_vec()));
}

#[test]
fn empty_options_mean_nothing() {
    for given in ["lowerdir=/a,,ro,", ",,lowerdir=/a", "lowerdir=/a,"] {
        assert_eq!(plain(&with(given)), ["/a"], "{given}");
    }
    assert_eq!(plain(&mount(&["-o", "", "-o", "lowerdir=/a", "/m"])), ["/a"]);
}

#[test]
fn image_lower_takes_its_three_paths() {
    let image = |options: &str| match with(options).lower {
        LowerDirs::Image(image) => [image.index, image.objects, image.layers].map(|p| p.to_str().unwrap().to_owned()),
        LowerDirs::Plain(_) | LowerDirs::Layers(_) => panic!("plain"),
    };
    assert_eq!(image("plyfs.index=/s/folded/x,plyfs.objects=/s/objects"), ["/s/folded/x", "/s/objects", "/s/layers"]);
    assert_eq!(image("plyfs.layers=/l,plyfs.index=i,plyfs.objects=o/"), ["i", "o/", "/l"]);
    assert_eq!(image("plyfs.index=i,plyfs.objects=objects/")[2], "layers");
    for (options, named) in [
        ("plyfs.index=/i", "plyfs.objects="),
        ("plyfs.objects=/o", "plyfs.index="),
        ("plyfs.layers=/o", "plyfs.index="),
        ("plyfs.index=/i,plyfs.objects=/o,lowerdir=/a", "leave one"),
    ] {
        assert!(refusal(options).contains(named), "{options}: {}", refusal(options));
    }
}

#[test]
fn upper_and_work_go_together() {
    assert!(refusal("lowerdir=/a,upperdir=/u").contains("workdir=DIR"));
    let options = with("lowerdir=/a,workdir=/w");
    assert_eq!((upper(&options), options.notes.len()), (None, 1));
}

#[test]
fn values_are_typed() {
    let options = with(
        "lowerdir=/a,squash_to_uid=7,squash_to_gid=8,squash_to_root,static_nlink,noacl,fsync=0,timeout=1.5,max_write=131072,\
         max_read=65536,clone_fd,userxattr,plyfs.threads=4,plyfs.log=/l,plyfs.whiteouts=overlay,fsname=a\\,b,subtype=x",
    );
    assert_eq!((options.owners.squash_uid, options.owners.squash_gid), (Some(7), Some(8)), "squash_to_root yields");
    assert_eq!((options.dir_nlink, options.no_acl, options.user_xattr), (DirNlink::One, true, true));
    assert_eq!((options.durability, options.timeout), (Durability::NoFsync, Some(Duration::from_millis(1500))));
    assert_eq!((options.max_write, options.mount.max_read), (Some(131_072), Some(65_536)));
    assert_eq!((options.clone_fd, options.threads.get()), (true, 4));
    assert_eq!((options.log, options.whiteouts), (Some("/l".into()), Whiteouts::Overlay));
    assert_eq!((options.mount.fsname, options.mount.subtype), (Some("a,b".into()), Some("x".into())));

    assert_eq!((options.leave, with("lowerdir=/a,plyfs.leave=aufs").leave), (Settle::AtRest, Settle::Aufs));

    let options = with("lowerdir=/a,squash_to_root,fsync=0,fsync=1,plyfs.nlink=one,plyfs.nlink=counted");
    assert_eq!((options.owners.squash_uid, options.owners.squash_gid), (Some(0), Some(0)));
    assert_eq!((options.durability, options.dir_nlink), (Durability::Full, DirNlink::Counted));
    assert_eq!(mount(&["-s", "-olowerdir=/a,plyfs.threads=4", "/m"]).threads.get(), 1);
}

#[test]
fn wrong_values_are_named() {
    for options in [
        "squash_to_uid=-1",
        "squash_to_uid=4294967295",
        "squash_to_uid=4294967296",
        "squash_to_uid",
        "squash_to_uid=",
        "squash_to_root=1",
        "xattr_permissions=3",
        "fsync=2",
        "timeout=-1",
        "timeout=x",
        "timeout=inf",
        "timeout=NaN",
        "max_write=0",
        "max_write=99999999999",
        "volatile=1",
        "ro=1",
        "lowerdir=",
        "lowerdir",
        "lowerdir=/a::/b",
        "lowerdir=:/a",
        "lowerdir=/a:",
        "lowerdir=//plugin/data/x",
        "plugins=/x",
        "datadir+=/x",
        "uidmapping=1:2",
        "uidmapping=\u{e9}",
        "plyfs.disable=passthru",
        "plyfs.whiteouts=aufs",
        "plyfs.threads=0",
        "plyfs.leave=kernel",
        "plyfs.nlink=2",
        "verity=require",
        "plyfs.index=",
        "context=\"a,b",
        "private=1",
        "metacopi=on",
        "plyfs.nonsense=1",
        "remount",
        "=",
        "=x",
        "nonsense",
    ] {
        let line = refusal(&format!("{options},lowerdir=/ok"));
        let name = options.split('=').next().unwrap();
        assert!(line.contains(&format!("'{name}")) && !line.contains('\n'), "{options}: {line}");
    }
}

#[test]
fn overlong_paths_and_options_are_refused_in_a_short_line() {
    let long = "x".repeat(4096);
    for options in [format!("lowerdir=/{long}"), format!("upperdir={long}"), format!("nonsense={long}")] {
        let line = refusal(&options);
        assert!(line.len() < 250, "{line}");
    }
    assert_eq!(plain(&with(&format!("lowerdir=/{}", &long[1..4095]))).len(), 1);
}

#[test]
fn features_are_switched_off_by_name() {
    for given in ["plyfs.disable=passthrough:acl", r"plyfs.disable=passthrough\,acl", "plyfs.disable=:acl:passthrough:"]
    {
        let options = with(&format!("lowerdir=/a,{given},ro"));
        let off: Vec<_> = Feature::ALL.iter().copied().filter(|&feature| !options.enabled(feature)).collect();
        assert_eq!(off, [Feature::Passthrough, Feature::Acl], "{given}");
    }
}

#[test]
fn later_mount_flags_win() {
    for (given, default, flags) in [
        ("ro", MountFlags::empty(), MountFlags::RDONLY),
        ("ro,rw", MountFlags::RDONLY, MountFlags::empty()),
        ("rw", MountFlags::NOATIME, MountFlags::NOATIME),
        ("relatime", MountFlags::NOATIME, MountFlags::RELATIME),
        ("relatime,noatime", MountFlags::empty(), MountFlags::NOATIME),
        ("nodev,nosuid,noexec", MountFlags::empty(), MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC),
        ("suid", MountFlags::NODEV | MountFlags::NOSUID, MountFlags::NODEV),
        ("nodiratime,relatime", MountFlags::NOATIME, MountFlags::NODIRATIME | MountFlags::RELATIME),
    ] {
        assert_eq!(with(&format!("lowerdir=/a,{given}")).mount.flags.over(default), flags, "{given}");
    }
}

/// Every row of the table is a promise; this holds the code to it.
#[test]
fn table_and_code_agree() {
    let sample = |known: &Known| match known.spelled.split_once('=') {
        None => known.spelled.to_owned(),
        Some((name, shape)) => {
            let value = match (name, shape) {
                ("uidmapping" | "gidmapping", _) => "0:0:1",
                ("plyfs.disable", _) => "acl",
                (_, "UID" | "GID" | "SECONDS" | "N") => "1",
                (_, "BYTES") => "8192",
                (_, words) if words.contains('|') => words.split('|').next().unwrap(),
                _ => "/x",
            };
            format!("{name}={value}")
        }
    };
    for known in OPTIONS {
        let lower = if known.spelled.starts_with("plyfs.") { "plyfs.index=/i,plyfs.objects=/o" } else { "lowerdir=/a" };
        let lower = if known.name() == "upperdir" { "lowerdir=/a,workdir=/w" } else { lower };
        let lower = if known.name() == "workdir" { "lowerdir=/a,upperdir=/u" } else { lower };
        let read = words(&["-o", &format!("{lower},{}", sample(known)), "/m"]);
        match (known.stance, read) {
            (Stance::Obeyed, Ok(Call::Mount(options))) => {
                assert!(options.notes.is_empty(), "{known:?}: {:?}", options.notes)
            }
            (Stance::Noted, Ok(Call::Mount(options))) => assert_eq!(options.notes.len(), 1, "{known:?}"),
            (Stance::Refused, Err(failure)) => assert!(failure.line().contains(known.meaning), "{failure}"),
            (_, read) => panic!("{known:?}: {read:?}"),
        }
    }
    let mut names: Vec<_> = OPTIONS.iter().map(Known::name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name stands there twice");
}

#[test]
fn random_lists_are_read_or_refused_never_a_panic() {
    let pieces = [
        "lowerdir=",
        "/a",
        ":",
        ",",
        "\\",
        "=",
        "\"",
        "context=\"",
        "uidmapping=",
        "0",
        "\u{e9}",
        "//",
        "plyfs.disable=",
        "-",
    ];
    let mut state = 1u64;
    for _ in 0..20_000 {
        let mut list = String::new();
        for _ in 0..12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            list.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        drop(words(&["-o", &list, "/m"]));
    }
}

#[test]
fn paths_become_absolute_and_nothing_else_changes() {
    let mut options = with("lowerdir=l/A:/abs,upperdir=u,workdir=./w,plyfs.log=log");
    options.resolve(Path::new("/g/overlay"));
    assert_eq!(plain(&options), ["/g/overlay/l/A", "/abs"]);
    assert_eq!(upper(&options), Some(("/g/overlay/u", "/g/overlay/./w")));
    assert_eq!((options.log, options.target), (Some("/g/overlay/log".into()), "/m".into()));
}

mod disk {
    use super::*;

    fn check(root: &Path, options: &str) -> Result<(), Failure> {
        let mut options = with(options);
        options.resolve(root);
        options.check()
    }

    #[test]
    fn directories_side_by_side_are_accepted() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["a", "b/diff", "c/diff", "c/work", "objects", "layers", "with:colon"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join("index"), b"").unwrap();
        std::os::unix::fs::symlink("b/diff", root.path().join("link")).unwrap();
        for options in [
            "lowerdir=a",
            "lowerdir=link:a:link",
            "lowerdir=link:a,upperdir=c/diff,workdir=c/work",
            r"lowerdir=with\:colon",
            "plyfs.index=index,plyfs.objects=objects",
            "plyfs.index=index,plyfs.objects=objects,upperdir=c/diff,workdir=c/work",
        ] {
            assert_eq!(check(root.path(), options), Ok(()), "{options}");
        }
    }

    #[test]
    fn what_is_missing_or_overlaps_is_named() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["a/in/work", "u", "w", "objects", "layers"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join("file"), b"").unwrap();
        std::os::unix::fs::symlink("a/in", root.path().join("link")).unwrap();
        for (options, named) in [
            ("lowerdir=a:gone", "lowerdir ROOT/gone: No such file or directory; check"),
            ("lowerdir=file", "lowerdir ROOT/file: Not a directory; name a directory"),
            (
                "lowerdir=a,upperdir=gone,workdir=w",
                "upperdir ROOT/gone: No such file or directory; create it first (mkdir -p)",
            ),
            ("lowerdir=a,upperdir=u,workdir=gone", "workdir ROOT/gone: No such file"),
            ("lowerdir=a,upperdir=u,workdir=u", "workdir ROOT/u: and upperdir= lie one in the other"),
            ("lowerdir=a,upperdir=u,workdir=a/in", "workdir ROOT/a/in: overlaps lowerdir ROOT/a"),
            ("lowerdir=w,upperdir=a/in,workdir=a/in/work", "one in the other"),
            ("lowerdir=w:a,upperdir=link,workdir=u", "upperdir ROOT/link: overlaps lowerdir ROOT/a"),
            ("lowerdir=a/in,upperdir=a,workdir=w", "upperdir ROOT/a: overlaps lowerdir ROOT/a/in"),
            ("lowerdir=a,upperdir=u,workdir=/proc/sys", "is not on the filesystem"),
            ("plyfs.index=gone,plyfs.objects=objects", "plyfs.index ROOT/gone: No such file"),
            ("plyfs.index=a,plyfs.objects=objects", "plyfs.index ROOT/a: is no file"),
            ("plyfs.index=file,plyfs.objects=gone", "plyfs.objects ROOT/gone: No such file"),
            ("plyfs.index=file,plyfs.objects=objects,plyfs.layers=gone", "plyfs.layers ROOT/gone: No such file"),
        ] {
            let line = check(root.path(), options).expect_err(options).line().to_owned();
            let named = named.replace("ROOT", root.path().to_str().unwrap());
            assert!(line.contains(&named), "{options}: {line}");
        }
    }
}
