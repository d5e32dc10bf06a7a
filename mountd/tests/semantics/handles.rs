//! Handles of files (name_to_handle_at), descriptors, and what a program with few of them can do.

use crate::area::{each, in_user_namespace};
use crate::tree::*;

/// `handle(path)` and `text(mount, handle)` for python.
const BY_HANDLE: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
def handle(path):
    made, mount = Handle(bytes=128), ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), ctypes.byref(made), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), path)
    return made
def text(root, made):
    root = os.open(root, os.O_RDONLY)
    file = libc.open_by_handle_at(root, ctypes.byref(made), os.O_RDONLY)
    if file < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return os.fdopen(file, encoding="latin-1").read()
root = sys.argv[1]
"#;

#[test]
fn a_handle_leads_to_the_file_over_its_copy_up_and_a_rename() {
    // Handles are opened by the superuser of the machine alone.
    if in_user_namespace() {
        return;
    }
    each(|area| {
        dir(&area.lower("d"));
        put(&area.lower("d/f"), "below");
        area.mount();
        put(&area.m("born"), "born");
        let script = format!(
            r#"{BY_HANDLE}
lower, born, folder = handle(root + "/d/f"), handle(root + "/born"), handle(root + "/d")
files = [open(root + "/d/f"), open(root + "/born")]  # what is open is known to the kernel
assert (text(root, lower), text(root, born)) == ("below", "born")
with open(root + "/d/f", "a") as file: file.write(" and above")
assert text(root, lower) == "below and above"
os.rename(root + "/d/f", root + "/moved"); os.rename(root + "/d", root + "/e")
assert (text(root, lower), text(root, born)) == ("below and above", "born")
assert bytes(handle(root + "/moved").data) == bytes(lower.data)
assert bytes(handle(root + "/e").data) == bytes(folder.data)"#
        );
        std::fs::write(area.path("script.py"), script).unwrap();
        sh(r#"exec python3 "$1" "$2""#, &[&area.path("script.py"), &area.m("")]);
    });
}

/// What the kernel has forgotten is found again: by name, from directories that are open or worked in, and by handles.
#[test]
fn no_program_meets_estale_after_caches_were_dropped() {
    if !crate::area::is_root("no_program_meets_estale_after_caches_were_dropped") {
        return;
    }
    each(|area| {
        for name in ["d/sub/deep", "into", "away/inner"] {
            dir(&area.lower(name));
        }
        for name in ["d/f", "d/changed", "d/renamed", "d/sub/deep/g", "away/inner/h", "l1"] {
            put(&area.lower(name), name);
        }
        file(&area.lower("d/large"), 200_000);
        std::fs::hard_link(area.lower("l1"), area.lower("d/l2")).unwrap();
        put(&area.lower("d/gone"), "x");
        area.mount();
        let script = format!(
            r#"{BY_HANDLE}
def forget():
    open("/proc/sys/vm/drop_caches", "w").write("2")
names = ["d/f", "d/changed", "d/renamed", "d/sub/deep/g", "away/inner/h", "l1", "d/l2"]
handles = {{name: handle(root + "/" + name) for name in names + ["d/sub", "d/sub/deep", "away/inner", "d/gone", "d/large"]}}
numbers = {{name: os.stat(root + "/" + name).st_ino for name in names}}
forget()
assert all(text(root, handles[name]) == ("l1" if name == "d/l2" else name) for name in names)
os.chdir(root + "/d/sub/deep")
sub = os.open("..", os.O_RDONLY)
born = open(root + "/born", "w+")
for round in range(3):
    forget()
    assert open("g").read() == "d/sub/deep/g" and os.listdir(sub) == ["deep"] and os.stat("../..").st_ino
    assert os.stat("deep/g", dir_fd=sub).st_size == 12
    open(root + "/d/changed", "a").write("+")
    born.write("born"); born.flush()
    assert os.fstat(born.fileno()).st_size == 4 * (round + 1)
os.rename(root + "/d/renamed", root + "/into/elsewhere")
os.rename(root + "/away", root + "/into/away")
open(root + "/into/away/inner/h", "a").write("+")
open(root + "/l1", "a").write("+")
os.unlink(root + "/d/gone")
forget()
assert text(root, handles["d/f"]) == "d/f"
assert text(root, handles["d/changed"]) == "d/changed+++"
assert text(root, handles["d/renamed"]) == "d/renamed"
assert text(root, handles["away/inner/h"]) == "away/inner/h+"
assert text(root, handles["l1"]) == text(root, handles["d/l2"]) == "l1+"
assert len(text(root, handles["d/large"])) == 200000
def listed(name):
    top = os.open(root, os.O_RDONLY)
    found = libc.open_by_handle_at(top, ctypes.byref(handles[name]), os.O_RDONLY | os.O_DIRECTORY)
    assert found >= 0, (name, os.strerror(ctypes.get_errno()))
    return os.listdir(found)
forget()
assert listed("d/sub/deep") == ["g"]
forget()
assert listed("away/inner") == ["h"] and listed("d/sub") == ["deep"]
try:
    text(root, handles["d/gone"])
    raise SystemExit("a removed file was opened")
except OSError as error:
    assert error.errno == 116, error  # ESTALE, as on any disk
places = {{"d/renamed": "into/elsewhere", "away/inner/h": "into/away/inner/h"}}
forget()
assert all(os.stat(root + "/" + places.get(name, name)).st_ino == number for name, number in numbers.items())
os.chdir("/")"#
        );
        std::fs::write(area.path("script.py"), script).unwrap();
        sh(r#"exec python3 "$1" "$2""#, &[&area.path("script.py"), &area.m("")]);
    });
}

#[test]
fn a_mount_that_was_begun_with_few_descriptors_serves_many_files() {
    each(|area| {
        for index in 0..500 {
            file(&area.lower(&format!("f{index}")), 100 + index % 3 * 70_000);
        }
        area.set_descriptors(64);
        area.mount();
        // Who may raise the limit does; else there are as many as there are.
        let own = rustix::thread::capabilities(None).unwrap();
        let raises = own.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) && !in_user_namespace();
        let many = if raises { 500 } else { 16 };
        let open: Vec<_> = (0..many).map(|index| open_rw(&area.m(&format!("f{index}")))).collect();
        for file in &open {
            std::os::unix::fs::FileExt::write_all_at(file, b"!", 0).unwrap();
        }
        drop(open);
        assert_eq!(names(&area.m("")).len(), 500);
    });
}

#[test]
fn sync_and_syncfs_return_with_files_open_for_writing() {
    each(|area| {
        file(&area.lower("large"), 5 << 20);
        put(&area.lower("small"), "small");
        area.mount();
        let files = ["large", "small"].map(|name| open_rw(&area.m(name)));
        for file in &files {
            std::os::unix::fs::FileExt::write_all_at(file, b"!", 0).unwrap();
            rustix::fs::syncfs(file).unwrap();
        }
        sh(r#"sync -f "$1""#, &[&area.m("small")]);
        assert_eq!(text(&area.m("small")), "!mall");
    });
}
