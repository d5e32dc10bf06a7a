//! File handles as the kernel's overlayfs notes them: as names of its index, in hex, and in its `overlay.origin` attributes.
//!
//! Their layout is `struct ovl_fb` of fs/overlayfs/overlayfs.h: version 0, the magic byte, the length of all, flags, the
//! kind of the handle, the filesystem's UUID, then what the filesystem made of the inode (include/linux/exportfs.h).

const MAGIC: u8 = 0xfb;
const HEADER: usize = 21;
const BIG_ENDIAN: u8 = 1;

/// Reads a handle in hex.
pub(crate) fn from_hex(hex: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes: Option<Vec<u8>> = hex
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect();
    bytes.filter(|bytes| inode_of(bytes).is_some())
}

/// Spells a handle as a name of the index.
pub(crate) fn to_hex(handle: &[u8]) -> Vec<u8> {
    handle.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
}

/// Returns the inode number that a handle holds; `None` for what is none, or a filesystem's whose handles are not known here.
pub(crate) fn inode_of(handle: &[u8]) -> Option<u64> {
    let (header, id) = handle.split_at_checked(HEADER)?;
    if header[0] != 0 || header[1] != MAGIC || usize::from(header[2]) != handle.len() || header[3] & BIG_ENDIAN != 0 {
        return None;
    }
    let word = |at: usize| id.get(at * 4..at * 4 + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let wide = |low: usize| Some(u64::from(word(low)?) | u64::from(word(low + 1)?) << 32);
    match (header[4], id.len()) {
        // ext4, xfs, f2fs: number, generation.
        (1, 8) => word(0).map(u64::from),
        // tmpfs: generation, number in two parts.
        (1, 12) => wide(1),
        // xfs, with numbers of 64 bits.
        (0x81, 12) => wide(0),
        // btrfs: object, root, generation.
        (0x4d, 20) => wide(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(kind: u8, words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0, MAGIC, (HEADER + words.len() * 4) as u8, 0, kind];
        bytes.extend([7; 16]);
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes
    }

    #[test]
    fn the_number_of_an_inode_is_read_from_its_handle() {
        assert_eq!(inode_of(&handle(1, &[12, 99])), Some(12));
        assert_eq!(inode_of(&handle(1, &[99, 12, 1])), Some(1 << 32 | 12));
        assert_eq!(inode_of(&handle(0x81, &[12, 3, 99])), Some(3 << 32 | 12));
        assert_eq!(inode_of(&handle(0x4d, &[257, 0, 5, 0, 9])), Some(257));
        // With the parent's number in it, or of no kind that is known.
        assert_eq!(inode_of(&handle(2, &[12, 99, 2, 1])), None);
        assert_eq!(inode_of(&handle(0xff, &[12, 99])), None);
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let good = handle(1, &[12, 99]);
        let hex = to_hex(&good);
        assert_eq!(from_hex(&hex), Some(good.clone()));
        for at in 0..good.len() {
            assert_eq!(inode_of(&good[..at]), None, "cut at {at}");
            for value in [0u8, 1, 0xfb, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                assert!(inode_of(&bad).is_none_or(|_| at >= 4 || bad[at] == good[at] || at == 3), "{at} {value}");
            }
        }
        for bad in [&b"#12"[..], b"", b"00f", b"zz"] {
            assert_eq!(from_hex(bad), None);
        }
        assert_eq!(from_hex(&hex[..hex.len() - 1]), None);
    }
}
