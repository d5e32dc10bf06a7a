//! Every option there is, as the documentation tells it. What is only noted or refused is decided here; what is obeyed is
//! read in `apply`, and a test holds the two together.

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its name and the shape of its value.
    pub spelled: &'static str,
    /// What we do about it.
    pub stance: Stance,
    /// What it means here, in one sentence.
    pub meaning: &'static str,
}

/// What is done about an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// It does what it says.
    Obeyed,
    /// It is understood, has no effect here, and a line in the log says so.
    Noted,
    /// The mount is refused.
    Refused,
}

impl Known {
    /// Returns the name alone.
    pub fn name(&self) -> &'static str {
        self.spelled.split_once('=').map_or(self.spelled, |(name, _)| name)
    }

    /// Finds the option called `name`.
    pub fn find(name: &str) -> Option<&'static Known> {
        OPTIONS.iter().find(|known| known.name() == name)
    }
}

const fn obeyed(spelled: &'static str, meaning: &'static str) -> Known {
    Known { spelled, stance: Stance::Obeyed, meaning }
}

const fn noted(spelled: &'static str, meaning: &'static str) -> Known {
    Known { spelled, stance: Stance::Noted, meaning }
}

const fn refused(spelled: &'static str, meaning: &'static str) -> Known {
    Known { spelled, stance: Stance::Refused, meaning }
}

/// Every option. One that is not here is refused.
pub const OPTIONS: &[Known] = &[
    // The union.
    obeyed("lowerdir=DIR[:DIR...]", "Read-only directories, topmost first; up to 1,000."),
    obeyed("lowerdir+=DIR", "One more directory below those given so far; a colon in it needs no escape."),
    obeyed("upperdir=DIR", "The writable directory; without it the mount is read-only."),
    obeyed("workdir=DIR", "Where changes are prepared; needed with upperdir=, on the same filesystem."),
    obeyed("uidmapping=ID:SHOWN:LEN[:...]", "Shows user ids of the disk as others."),
    obeyed("gidmapping=ID:SHOWN:LEN[:...]", "Shows group ids of the disk as others."),
    obeyed("squash_to_root", "Everything belongs to 0:0."),
    obeyed("squash_to_uid=UID", "Everything belongs to this user."),
    obeyed("squash_to_gid=GID", "Everything belongs to this group."),
    obeyed(
        "xattr_permissions=0|2",
        "2: owner, mode and kind are kept in user.containers.override_stat, also where the disk could hold them; 1 is refused.",
    ),
    obeyed("static_nlink", "The link count of a directory is always 1."),
    obeyed("noacl", "POSIX ACLs are neither shown nor taken."),
    obeyed("fsync=0|1", "0: fsync of a program is not passed on."),
    obeyed("volatile", "Nothing is synced at all; a crash of the machine may cost the upper."),
    obeyed("userxattr", "Marks in the upper are user.overlay.* even where trusted.* could be written."),
    obeyed("timeout=SECONDS", "How long the kernel may keep names and attributes; without it as long as it likes."),
    obeyed("max_write=BYTES", "The longest write request, 4096 to 16777216."),
    obeyed("max_read=BYTES", "The longest read request, 4096 or more."),
    obeyed("clone_fd", "Each reading thread has its own descriptor of /dev/fuse."),
    obeyed("debug", "As -d: stays in the foreground and logs everything."),
    refused("plugins=PATH", "layers from plugins are not supported: mount the layer first and name its directory"),
    // Our own.
    obeyed("plyfs.index=FILE", "The folded index of an image; instead of lowerdir=."),
    obeyed("plyfs.objects=DIR", "The store's large bodies; needed with plyfs.index=."),
    obeyed("plyfs.layers=DIR", "The store's layers; 'layers' beside plyfs.objects= if not given."),
    obeyed("plyfs.log=FILE", "Where the daemon appends its log."),
    obeyed("plyfs.disable=NAME[:NAME...]", "Switches features off; a comma between names must be escaped."),
    obeyed(
        "plyfs.whiteouts=all|overlay",
        "overlay: only kernel overlayfs's whiteouts count, '.wh.x' is an ordinary file.",
    ),
    obeyed(
        "plyfs.leave=overlay|plain|aufs",
        "The form in which the upper is left when the mount ends; overlay if not given.",
    ),
    obeyed("plyfs.nlink=counted|one", "one: as static_nlink."),
    obeyed("plyfs.threads=N", "Threads that read requests, 1 to 64; 1 if not given."),
    // The mount itself.
    obeyed("ro", "The mount is read-only."),
    obeyed("rw", "The mount is writable where there is an upperdir=."),
    obeyed("suid", "Set-user-ID bits count; so by default where we may mount ourselves."),
    obeyed("nosuid", "Set-user-ID bits do not count."),
    obeyed("dev", "Device nodes work; so by default where we may mount ourselves."),
    obeyed("nodev", "Device nodes do not work."),
    obeyed("exec", "Programs can be run."),
    obeyed("noexec", "Programs cannot be run."),
    obeyed("atime", "Access times are as the kernel keeps them."),
    obeyed("noatime", "Access times are not kept; so by default."),
    obeyed("relatime", "Access times are kept now and then."),
    obeyed("norelatime", "As atime."),
    obeyed("strictatime", "Access times are kept."),
    obeyed("nostrictatime", "As atime."),
    obeyed("diratime", "Access times of directories are kept."),
    obeyed("nodiratime", "Access times of directories are not kept."),
    obeyed("sync", "Every write is synchronous."),
    obeyed("async", "Writes are not synchronous."),
    obeyed("dirsync", "Changes of directories are synchronous."),
    obeyed("symfollow", "Symbolic links are followed."),
    obeyed("nosymfollow", "Symbolic links are not followed."),
    obeyed("allow_other", "Everybody may use the mount; so by default where we may mount ourselves."),
    obeyed("allow_root", "Root and the mounting user may use the mount, nobody else."),
    obeyed("default_permissions", "The kernel checks permissions; it always does."),
    obeyed("fsname=NAME", "The source in the mount table."),
    obeyed("subtype=NAME", "The part behind 'fuse.' in the mount table's type."),
    obeyed("context=CONTEXT", "SELinux: the label of everything in the mount."),
    obeyed("fscontext=CONTEXT", "SELinux: the label of the filesystem."),
    obeyed("defcontext=CONTEXT", "SELinux: the label of what has none."),
    obeyed("rootcontext=CONTEXT", "SELinux: the label of the root directory."),
    obeyed(
        "private",
        "The mount does not propagate; so the other seven: rprivate, shared, rshared, slave, rslave, unbindable, runbindable.",
    ),
    obeyed("rprivate", "See private."),
    obeyed("shared", "See private."),
    obeyed("rshared", "See private."),
    obeyed("slave", "See private."),
    obeyed("rslave", "See private."),
    obeyed("unbindable", "See private."),
    obeyed("runbindable", "See private."),
    // Kernel overlayfs's, as runtimes pass them on.
    noted("metacopy=on|off", "metadata changes never copy data"),
    noted("redirect_dir=on|off|follow|nofollow", "lower directories can always be renamed"),
    noted("index=on|off", "hard links are always kept together"),
    noted("xino=on|off|auto", "inode numbers are always unique and stable"),
    noted("nfs_export=on|off", "the mount cannot be exported by NFS"),
    noted("uuid=auto|on|off|null", "the mount has no UUID of its own"),
    noted("verity=off|on|require", "fs-verity digests are neither written nor checked; 'require' is refused"),
    noted("override_creds", "the daemon has credentials of its own"),
    noted("nooverride_creds", "the daemon has credentials of its own"),
    refused("datadir+=DIR", "data-only layers are not supported: give a full layer in lowerdir="),
    // libfuse's and fuse-overlayfs's, for which there is no use.
    noted("threaded=0|1", "one thread reads requests unless plyfs.threads= says otherwise"),
    noted("max_threads=N", "one thread reads requests unless plyfs.threads= says otherwise"),
    noted("max_idle_threads=N", "one thread reads requests unless plyfs.threads= says otherwise"),
    noted("auto_unmount", "the daemon always unmounts when it leaves"),
    noted("nonempty", "a directory need not be empty to be mounted on"),
    // Words of /etc/fstab that mount(8) may leave in.
    noted("defaults", "nothing to do"),
    noted("auto", "a word for mount(8)"),
    noted("noauto", "a word for mount(8)"),
    noted("user", "a word for mount(8)"),
    noted("nouser", "a word for mount(8)"),
    noted("users", "a word for mount(8)"),
    noted("owner", "a word for mount(8)"),
    noted("group", "a word for mount(8)"),
    noted("nofail", "a word for mount(8)"),
    noted("_netdev", "a word for mount(8)"),
];
