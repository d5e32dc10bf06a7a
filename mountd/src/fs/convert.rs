//! From the union's nouns to fuser's, and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use layer::{Stat, Time};
use overlay::Error;
use overlay::upper::SetTime;

/// Turns an error into the number that the program gets; a fault is logged here, once.
pub fn answer(error: &Error) -> fuser::Errno {
    if let Error::Fault(fault) = error {
        log::error!("{fault}");
    }
    answer_with(error.errno())
}

/// The number as fuser has it.
pub(crate) fn answer_with(errno: overlay::Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

/// Returns a kind in fuser's words.
pub(crate) fn kind(kind: layer::FileType) -> FileType {
    match kind {
        layer::FileType::File => FileType::RegularFile,
        layer::FileType::Dir => FileType::Directory,
        layer::FileType::Symlink => FileType::Symlink,
        layer::FileType::Char => FileType::CharDevice,
        layer::FileType::Block => FileType::BlockDevice,
        layer::FileType::Fifo => FileType::NamedPipe,
        layer::FileType::Socket => FileType::Socket,
    }
}

fn system_time(time: Time) -> SystemTime {
    let fraction = Duration::new(0, time.nsec.min(999_999_999));
    let whole = match u64::try_from(time.sec) {
        Ok(sec) => UNIX_EPOCH.checked_add(Duration::from_secs(sec)),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(time.sec.unsigned_abs())),
    };
    whole.and_then(|whole| whole.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

/// Reads a time as fuser 0.18 hands it over: before 1970 it takes the nanoseconds off instead of adding them.
fn time_from(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let sec = i64::try_from(before.as_secs()).map_or(i64::MIN, |sec| -sec);
            Time { sec, nsec: before.subsec_nanos() }
        }
    }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time_from(time)),
    }
}

/// Spells attributes for the kernel, under the number `id`.
pub(crate) fn file_attr(stat: &Stat, id: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(stat.kind),
        perm: stat.perm,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: encode_dev(stat.rdev),
        blksize: 4096,
        flags: 0,
    }
}

/// Spells a device number as the kernel does in 32 bits (new_encode_dev in linux/kdev_t.h).
fn encode_dev(dev: layer::Dev) -> u32 {
    (dev.minor & 0xff) | ((dev.major & 0xfff) << 8) | ((dev.minor & 0xf_ff00) << 12)
}

/// Reads a device number that the kernel sent (new_decode_dev in linux/kdev_t.h).
pub(crate) fn decode_dev(dev: u32) -> layer::Dev {
    layer::Dev { major: (dev & 0xf_ff00) >> 8, minor: (dev & 0xff) | ((dev >> 12) & 0xf_ff00) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_go_there_and_back() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 0x1_2345), (0xfff, 0xf_ffff)] {
            let dev = layer::Dev { major, minor };
            assert_eq!(decode_dev(encode_dev(dev)), dev);
        }
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        let time = Time { sec: -2, nsec: 800_000_000 };
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(1200));
        // What fuser makes of the kernel's (-2 s, 800000000 ns).
        assert_eq!(time_from(UNIX_EPOCH - Duration::new(2, 800_000_000)), time);
        assert_eq!(system_time(Time { sec: i64::MIN, nsec: 0 }), UNIX_EPOCH - Duration::from_secs(1 << 63));
    }
}
