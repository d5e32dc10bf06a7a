//! The command line: what can be typed, in the words that docker and podman taught people.
//!
//! Every verb has a short form (`plyfs rmi`) and a form under its noun (`plyfs image rm`); both are one command.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::BenchArgs;
use crate::filter;
use crate::print::Format;
use crate::registries::{LoginArgs, LogoutArgs, ManifestInspectArgs, PullArgs, PushArgs, SearchArgs};
use crate::volumes::VolumeCommand;

/// Container images as directories: load them once, mount them for as many containers as you like.
#[derive(Debug, Parser)]
#[command(name = "plyfs", version, subcommand_required = true)]
#[command(arg_required_else_help = true, help_template = HELP, max_term_width = 100)]
pub(crate) struct Cli {
    /// The store's directory [default: $PLYFS_ROOT, else /var/lib/plyfs for root and ~/.local/share/plyfs for others]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const HELP: &str = "\
{about}

{usage-heading} {usage}

Start here:
  quickstart  Show in one go what plyfs does, with a sample image or yours
  sample      Write the sample image as an archive           (plyfs sample | plyfs load)

Images:
  pull        Pull images from a registry
  push        Push an image to a registry
  load        Load images from an OCI layout or an archive
  save        Write images as an archive                     (plyfs save redis | docker load)
  images      List images                                    (also: image ls)
  inspect     Show all that is known of an image or a container
  history     Show the steps that made an image
  tag         Give an image one more name
  rmi         Remove images                                  (also: image rm)
  prune       Remove images that are not in use              (also: image prune)
  tree        Draw images over the layers that they share
  manifest    Show what a registry has under a name          (manifest inspect)
  search      Search a registry
  login       Log in to a registry
  logout      Forget the password for a registry

Containers:
  run         Run a command in a new container, by crun or runc (also: container run)
  create      Make a container: an image with a writable layer of its own
  ps          List containers                                (also: container ls)
  diff        Show what a container changed                  (A added, C changed, D deleted)
  commit      Make an image of a container                   (one more layer: what it changed)
  export      Write a container's whole tree as a tar
  explain     Show which layer a path comes from, and why
  rm          Remove containers                              (also: container rm)
  volume      List and remove named volumes                  (volume ls, volume rm, volume prune)

Mounts:
  mount       Mount a container read-write, or an image read-only
  umount      Unmount, and wait until all is written
  settle      Complete what a container's layer has only in part
  bundle      Mount as a bundle for an OCI runtime: rootfs and config.json
  unshare     Run a command where an ordinary user may mount

Runtimes:
  snapshotter Serve containerd's snapshots over the store
  layer-store Offer the store's layers to podman, buildah and CRI-O
  install-links Make the names by which runtimes find plyfs-mountd

System:
  df          Show what the store holds and what is shared   (also: system df)
  gc          Remove what nothing uses any more              (also: system gc)
  fsck        Check the store, and repair it                 (also: system fsck)
  bench       Measure plyfs beside other union filesystems
  info        Show the store and what this machine can do
  version     Show the version

Options:
{options}

'plyfs COMMAND --help' tells more about a command.
";

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show in one go what plyfs does, with a sample image or yours
    ///
    /// Loads an image, mounts it for two containers, changes files in one of them, and shows what each sees, what each
    /// holds, and what they share. Leaves nothing behind unless told to. Works as root and as an ordinary user.
    Quickstart(QuickstartArgs),
    /// Write the sample image as an archive: plyfs sample | plyfs load
    Sample(SampleArgs),
    /// Pull images from a registry
    Pull(PullArgs),
    /// Push an image to a registry
    ///
    /// Layers that the registry has are left alone; others are made again from the store, bit by bit, and compressed.
    Push(PushArgs),
    /// Search a registry
    Search(SearchArgs),
    /// Log in to a registry
    Login(LoginArgs),
    /// Forget name and password for a registry
    Logout(LogoutArgs),
    /// Load images from an OCI layout or an archive
    Load(LoadArgs),
    /// Write images as an archive, which plyfs, docker, podman and skopeo read
    Save(SaveArgs),
    /// List images
    Images(ImagesArgs),
    /// Show all that is known of an image or a container
    Inspect(InspectArgs),
    /// Show the steps that made an image
    History(HistoryArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Run a command in a new container, by crun or runc
    ///
    /// Makes a container, mounts it, and has an OCI runtime run the image's command, or yours. Passes signals on, ends with the
    /// command's exit status, and takes away everything but the container, and with --rm that too. Works as an ordinary user.
    Run(RunArgs),
    /// Remove images that are not in use
    Prune(ImagePruneArgs),
    /// Draw images over the layers that they share
    Tree(TreeArgs),
    /// Make a container: an image with a writable layer of its own
    Create(CreateArgs),
    /// List containers
    Ps(PsArgs),
    /// Show what a container changed: A added, C changed, D deleted
    Diff(DiffArgs),
    /// Make an image of a container: its image with one more layer, which holds what the container changed
    ///
    /// A mounted container is taken as it is at that moment. Prints the new image's ID.
    Commit(CommitArgs),
    /// Write a container's whole tree as a tar, as programs in it see it
    Export(ExportArgs),
    /// Show which layer a path comes from, and which whiteouts, opaque directories and moves were met
    Explain(ExplainArgs),
    /// Remove containers and what they wrote
    Rm(RmArgs),
    /// Mount a container read-write, or an image read-only
    ///
    /// Goes to the background once the mount answers. Prints the mount point. Without arguments, lists what is mounted.
    Mount(MountArgs),
    /// Unmount, and wait until all is written
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Mount as a bundle for an OCI runtime: rootfs and config.json
    ///
    /// A container is mounted read-write, an image read-only. Then 'crun run --bundle DIR NAME' runs it; end it with
    /// 'plyfs umount DIR/rootfs'.
    Bundle(BundleArgs),
    /// Bring what containers wrote to rest, for the kernel's overlayfs
    ///
    /// Completes what a mount that died left half copied. With --plain, also renamed directories and large files whose
    /// metadata alone was changed, so that the kernel's overlayfs shows the same to ordinary users (userxattr). With
    /// --whiteouts=aufs, for programs that read '.wh.' names.
    Settle(SettleArgs),
    /// Run a command where an ordinary user may mount
    ///
    /// The command (by default a shell) runs as root of its own user and mount namespace. It sees the mounts made in it;
    /// others do not. They end with it.
    Unshare(UnshareArgs),
    /// Serve containerd's snapshots over the store
    ///
    /// Listens on a Unix socket that containerd's proxy_plugins name. Ends by SIGTERM; the mounts stay.
    Snapshotter(SnapshotterArgs),
    /// Offer the store's layers to podman, buildah and CRI-O, as an additional layer store
    ///
    /// Mounts them on DIR, which storage.conf names: additionallayerstores = ["DIR:ref"]. What is pulled then stands on the layers that
    /// the store has, and only others are fetched. Stays in the foreground; ends by SIGTERM, or when DIR is unmounted.
    LayerStore(LayerStoreArgs),
    /// Make the names by which runtimes and mount(8) find plyfs-mountd
    ///
    /// In DIR: fuse-overlayfs, for docker and whatever else looks for that program, and mount.fuse3.plyfs and mount.fuse.plyfs, which
    /// mount(8) looks for in /sbin. What is there already and something else is not replaced unless told.
    InstallLinks(InstallLinksArgs),
    /// Show what the store holds and what is shared
    Df(DfArgs),
    /// Remove what nothing uses any more
    Gc(GcArgs),
    /// Check the store, and repair it
    ///
    /// Hashes every object, puts every layer's tar together and hashes it, checks indexes, documents and records, and looks for what
    /// belongs to nobody. Exit status 1 if something is wrong and was not repaired.
    Fsck(FsckArgs),
    /// Measure plyfs beside other union filesystems
    ///
    /// Mounts the same layers by each contestant and has them do the same work, in interleaved rounds; tells medians, spreads and
    /// ratios. Takes ten minutes at most unless told. Everything lies in a scratch directory that is removed at the end.
    Bench(BenchArgs),
    /// Show the store and what this machine can do
    Info(InfoArgs),
    /// Show the version
    Version(VersionArgs),
    /// Commands about manifests at a registry
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Commands about images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Commands about containers
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Commands about named volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Commands about the store
    #[command(subcommand)]
    System(SystemCommand),
}

/// `plyfs image ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Load images from an OCI layout or an archive
    Load(LoadArgs),
    /// Write images as an archive
    Save(SaveArgs),
    /// Pull images from a registry
    Pull(PullArgs),
    /// Push an image to a registry
    Push(PushArgs),
    /// Search a registry
    Search(SearchArgs),
    /// Show all that is known of an image
    Inspect(InspectArgs),
    /// Show the steps that made an image
    History(HistoryArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Remove images that are not in use
    Prune(ImagePruneArgs),
    /// Draw images over the layers that they share
    Tree(TreeArgs),
    /// Mount an image read-only
    Mount(MountArgs),
    /// Unmount an image
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
}

/// `plyfs manifest ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Show the manifest or index that a name leads to, without pulling it
    Inspect(ManifestInspectArgs),
}

/// `plyfs container ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(PsArgs),
    /// Run a command in a new container
    Run(RunArgs),
    /// Make a container
    Create(CreateArgs),
    /// Show all that is known of a container
    Inspect(InspectArgs),
    /// Show what a container changed: A added, C changed, D deleted
    Diff(DiffArgs),
    /// Make an image of a container
    Commit(CommitArgs),
    /// Write a container's whole tree as a tar
    Export(ExportArgs),
    /// Mount a container read-write
    Mount(MountArgs),
    /// Unmount a container, and wait until all is written
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Bring what containers wrote to rest, for the kernel's overlayfs
    Settle(SettleArgs),
    /// Remove containers and what they wrote
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove containers that are not mounted
    Prune(ContainerPruneArgs),
}

/// `plyfs system ...`
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Show what the store holds and what is shared
    Df(DfArgs),
    /// Remove what nothing uses any more
    Gc(GcArgs),
    /// Remove containers that are not mounted, images that are not in use, and what nothing uses any more
    Prune(SystemPruneArgs),
    /// Check the store, and repair it
    Fsck(FsckArgs),
    /// Show the store and what this machine can do
    Info(InfoArgs),
    /// Show the version
    Version(VersionArgs),
}

/// `--format`, for commands that print a list.
#[derive(Debug, Args)]
pub(crate) struct FormatArg {
    /// 'table', 'json', or a template such as '{{.ID}} {{.Size}}'
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_default_value = true)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// An image of yours: oci:DIR[:REF], oci-archive:FILE, docker-archive:FILE, or the name of a loaded one
    /// [default: a small sample that is built in]
    pub(crate) image: Option<String>,
    /// Keep the image, the containers and their mounts, in your store
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Sources:
  oci:DIR[:REF]               an OCI layout (skopeo copy ... oci:DIR:REF)
  oci-archive:FILE[:REF]      a tar of an OCI layout
  docker-archive:FILE[:REF]   what 'docker save' or 'podman save' writes

Without a source and without -i, an archive is read from standard input: docker save redis | plyfs load")]
pub(crate) struct LoadArgs {
    /// Where the image is, in skopeo's spelling
    #[arg(value_name = "SOURCE", conflicts_with = "input")]
    pub(crate) source: Option<String>,
    /// Read an archive of any kind; '-' is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Print names only, no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Images, by name or ID; a repository without a tag means all its tags
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How the archive is laid out
    #[arg(long, value_name = "FORM", default_value = "docker-archive")]
    pub(crate) format: SaveFormat,
}

/// `plyfs save --format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SaveFormat {
    /// As 'docker save' writes it; readable as an OCI archive too.
    DockerArchive,
    /// An OCI layout in a tar.
    OciArchive,
}

#[derive(Debug, Args)]
#[command(after_help = filter::HELP)]
pub(crate) struct ImagePruneArgs {
    /// Remove images that have a name too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only images that meet this; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerPruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SystemPruneArgs {
    /// Remove images that have a name too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// Only this image, by name or ID
    pub(crate) image: Option<String>,
    /// Print whole digests
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

#[derive(Debug, Args)]
#[command(after_help = filter::HELP)]
pub(crate) struct ImagesArgs {
    /// Only images of this repository, or with this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(crate) name: Option<String>,
    /// Accepted for docker's sake: there are no hidden images
    #[arg(short, long, hide = true)]
    pub(crate) all: bool,
    /// Only images that meet this; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Print image IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print whole IDs
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Show the manifests' digests as well
    #[arg(long)]
    pub(crate) digests: bool,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Images or containers, by name or ID
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
    /// A template such as '{{.Id}}' [default: JSON]
    #[arg(short, long, value_name = "FORMAT", default_value = "json", hide_default_value = true)]
    pub(crate) format: Format,
    /// Look among these only
    #[arg(long = "type", value_name = "KIND")]
    pub(crate) kind: Option<Kind>,
}

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// An image.
    Image,
    /// A container.
    Container,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The image, by name or ID
    pub(crate) image: String,
    /// Print image IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print whole IDs and commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// The image, by name or ID
    pub(crate) image: String,
    /// The new name
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Images, by name or ID
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Remove every name of an image given by ID; an image that is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The image, by name or ID
    pub(crate) image: String,
    /// The container's name [default: two words chosen at random]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Remove the container and what it wrote when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// The container's name [default: two words chosen at random]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Set a variable; NAME alone passes yours on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Show a directory or file of the host in the container, or a named volume, which is made when it is not there
    #[arg(short, long = "volume", value_name = "SOURCE|NAME:TARGET[:ro]")]
    pub(crate) volumes: Vec<String>,
    /// The working directory inside
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The user inside, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Take this program instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Show the root read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The network: the loopback device alone, or what the host has
    #[arg(long = "net", visible_alias = "network", value_name = "NETWORK", default_value = "none")]
    pub(crate) network: Network,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The OCI runtime, by name or path [default: crun, else runc]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) runtime: Option<String>,
    /// The image, by name or ID
    pub(crate) image: String,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What a container sees of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// The loopback device alone.
    None,
    /// What the host has.
    Host,
}

#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// What to mount: a container (read-write) or an image (read-only), by name or ID
    #[arg(value_name = "CONTAINER|IMAGE")]
    pub(crate) name: String,
    /// The bundle's directory; made if it is not there
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Mount options for the daemon, separated by commas
    #[arg(short, long = "options", value_name = "OPTIONS")]
    pub(crate) options: Vec<OsString>,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Show all containers, not only those that are mounted
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print container IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print whole IDs
    #[arg(long)]
    pub(crate) no_trunc: bool,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The container, by name or ID
    pub(crate) container: String,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Instructions for --change, as a Dockerfile spells them: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER,
VOLUME, WORKDIR:  --change 'CMD [\"redis-server\"]' --change 'ENV A=1 B=2'")]
pub(crate) struct CommitArgs {
    /// The container, by name or ID
    pub(crate) container: String,
    /// The image's name [default: none]
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: Option<String>,
    /// Change the image's config by a Dockerfile instruction; may be given several times
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<String>,
    /// A comment for the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Who made it ("Jane Doe <jane@example.org>")
    #[arg(short, long, value_name = "NAME")]
    pub(crate) author: Option<String>,
    /// Leave out files whose names begin with '.wh.': a layer cannot hold them
    #[arg(long)]
    pub(crate) skip_reserved: bool,
    /// Accepted for docker's sake: programs are never stopped
    #[arg(short, long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) pause: Option<bool>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The container, by name or ID
    pub(crate) container: String,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The container or image, by name or ID
    #[arg(value_name = "CONTAINER|IMAGE")]
    pub(crate) name: String,
    /// The path inside
    pub(crate) path: OsString,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Containers, by name or ID
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
    /// Unmount first; a container that is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SettleArgs {
    /// Containers, by name or ID; they must not be mounted
    #[arg(value_name = "CONTAINER", required = true)]
    pub(crate) containers: Vec<String>,
    /// Leave no redirects and no metadata-only copies
    #[arg(long)]
    pub(crate) plain: bool,
    /// How deletions are spelled; 'aufs' is plain as well
    #[arg(long, value_name = "FORM", default_value = "overlay")]
    pub(crate) whiteouts: WhiteoutForm,
}

/// `plyfs settle --whiteouts`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhiteoutForm {
    /// Devices 0:0 and marks, for the kernel's overlayfs.
    Overlay,
    /// Files '.wh.NAME' and '.wh..wh..opq', and no marks.
    Aufs,
}

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// What to mount: a container (read-write) or an image (read-only), by name or ID
    #[arg(value_name = "CONTAINER|IMAGE", requires = "target")]
    pub(crate) name: Option<String>,
    /// Where: an empty directory
    #[arg(value_name = "DIR")]
    pub(crate) target: Option<PathBuf>,
    /// Mount options for the daemon, separated by commas (ro, allow_other, noatime, plyfs.disable=...)
    #[arg(short, long = "options", value_name = "OPTIONS")]
    pub(crate) options: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// A mount point, or a container's name or ID
    #[arg(value_name = "DIR|CONTAINER", required = true)]
    pub(crate) targets: Vec<PathBuf>,
    /// Let go of the mount point now, even if programs still use it; it ends when they do
    #[arg(short, long)]
    pub(crate) lazy: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UnshareArgs {
    /// How user IDs are mapped inside
    #[arg(long, value_name = "IDS", default_value = "auto")]
    pub(crate) map: IdMap,
    /// The command and its arguments [default: $SHELL]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Which user IDs exist in a new user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IdMap {
    /// The range of /etc/subuid and /etc/subgid where there is one, else the single ID.
    Auto,
    /// You as root, and the range of /etc/subuid and /etc/subgid above.
    Range,
    /// You as root, and nobody else.
    Single,
}

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Show each image and each container
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotterArgs {
    /// The Unix socket to listen on
    #[arg(long, value_name = "SOCKET", default_value = "/run/plyfs/snapshotter.sock")]
    pub(crate) address: PathBuf,
    /// Who mounts a snapshot
    #[arg(long, value_name = "FORM", default_value = "bind")]
    pub(crate) mounts: MountForm,
}

/// How containerd comes to the mount of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MountForm {
    /// The snapshotter mounts it, containerd binds that.
    Bind,
    /// containerd runs mount.fuse3, which runs plyfs-mountd.
    Fuse3,
}

#[derive(Debug, Args)]
pub(crate) struct LayerStoreArgs {
    /// Where to mount
    #[arg(value_name = "DIR")]
    pub(crate) target: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct InstallLinksArgs {
    /// Where to make them
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Which of them [default: all]
    #[arg(value_name = "NAME", value_parser = crate::install_links::NAMES)]
    pub(crate) names: Vec<String>,
    /// Where they lead [default: plyfs-mountd beside plyfs, else in PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// Replace what is there
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {}

#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// Move away what is damaged and remove what belongs to nobody
    #[arg(long)]
    pub(crate) repair: bool,
    /// Print nothing unless something is wrong
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Every command below `command`, as it is typed, with its options.
    fn tree(command: &clap::Command, typed: &str, found: &mut Vec<(String, Vec<String>)>) {
        for sub in command.get_subcommands() {
            let typed = format!("{typed} {}", sub.get_name());
            let visible = sub.get_arguments().filter(|argument| !argument.is_hide_set());
            let options = visible.filter_map(|argument| argument.get_long().map(|long| format!("--{long}")));
            found.push((typed.clone(), options.collect()));
            tree(sub, &typed, found);
        }
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_every_command() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let is_noun = command.has_subcommands();
            assert!(is_noun || HELP.contains(&format!("\n  {name} ")), "{name} is missing in the help");
        }
    }

    #[test]
    fn page_of_commands_names_every_command_and_option() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md")).unwrap();
        let mut found = Vec::new();
        tree(&Cli::command(), "plyfs", &mut found);
        for (typed, options) in found {
            assert!(page.contains(&typed), "docs/commands.md does not name '{typed}'");
            for option in options {
                assert!(page.contains(&option), "docs/commands.md does not name {option} of '{typed}'");
            }
        }
    }
}
