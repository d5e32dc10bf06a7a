//! What can be switched off by `plyfs.disable=`, so that tests and users can take one thing out.

macro_rules! features {
    ($($variant:ident $name:literal $doc:literal)*) => {
        /// Something the daemon uses where the kernel and its privileges allow it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Feature {
            $(#[doc = $doc] $variant,)*
        }

        impl Feature {
            /// All of them.
            pub const ALL: &[Feature] = &[$(Feature::$variant),*];

            /// Returns the name in `plyfs.disable=`.
            pub fn name(self) -> &'static str {
                match self { $(Feature::$variant => $name,)* }
            }

            /// Returns what it is, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Feature::$variant => $doc,)* }
            }
        }
    };
}

features! {
    Passthrough "passthrough" "Reads and writes go from the kernel to the backing file, past the daemon."
    ReadDirPlus "readdirplus" "Directories are listed with attributes."
    ParallelDirops "paralleldirops" "The kernel asks about several names of one directory at once."
    NoOpendir "noopendir" "Directories are opened without asking the daemon."
    CacheSymlinks "cachesymlinks" "The kernel keeps the targets of symbolic links."
    AllowIdmap "idmap" "The mount can be idmapped."
    Resend "resend" "The kernel can be asked for unanswered requests again."
    KillPriv "killpriv" "The daemon drops set-user-ID bits and capabilities on a write, and the kernel need not ask."
    Acl "acl" "POSIX ACLs, where a layer or the upper has any."
    NegativeEntries "negative" "The kernel remembers which names are missing."
    ReadAhead "readahead" "The mount reads 1 MiB ahead."
    PrivateLower "privatelower" "Lower directories are opened through a private read-only clone of their mount."
    Reflink "reflink" "Copy-up shares blocks with the lower where the filesystem can."
    Bare "bare" "A read-only mount without any extended attribute says so to a program that asks for many."
    Follow "follow" "The reader of requests goes to the processor of its only client."
    Content "content" "The content of a small file comes with its first open."
    LazyCopyUp "lazycopyup" "Large files are copied up piece by piece."
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet(u32);

impl FeatureSet {
    /// Adds one.
    pub fn insert(&mut self, feature: Feature) {
        self.0 |= 1 << feature as u32;
    }

    /// Tells whether it is in the set.
    pub fn contains(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u32) != 0
    }

    /// Reads names separated by commas or colons; empty ones mean nothing.
    ///
    /// # Errors
    /// The name that is none.
    pub(super) fn parse(names: &str) -> Result<Self, &str> {
        let mut set = FeatureSet::default();
        for name in names.split([',', ':']).filter(|name| !name.is_empty()) {
            set.insert(*Feature::ALL.iter().find(|feature| feature.name() == name).ok_or(name)?);
        }
        Ok(set)
    }
}
