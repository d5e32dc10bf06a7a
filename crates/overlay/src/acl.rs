//! What a new inode inherits from a directory's default ACL (acl(5), Object creation and default ACLs).

/// The attribute that holds a file's own ACL.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what new entries of a directory inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Tells whether an attribute is a POSIX ACL.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Applies a default ACL to the mode that a program asked for: the permission bits, and the ACL of its own that the new inode
/// needs (`None` when the bits say it all). A text that is no ACL is `None`.
pub(crate) fn inherit(default: &[u8], perm: u16) -> Option<(u16, Option<Vec<u8>>)> {
    let (head, body) = default.split_at_checked(4)?;
    if u32::from_le_bytes(head.try_into().ok()?) != VERSION || body.len() % 8 != 0 {
        return None;
    }
    let mut acl = default.to_vec();
    let mut bits = perm & 0o7000;
    let mut extended = false;
    let has_mask = body.chunks_exact(8).any(|entry| entry[0] == MASK as u8 && entry[1] == 0);
    for entry in acl[4..].chunks_exact_mut(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let has = u16::from_le_bytes([entry[2], entry[3]]);
        let shift = match tag {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => {
                extended |= tag != GROUP_OBJ;
                continue;
            }
        };
        extended |= tag == MASK;
        let kept = has & (perm >> shift) & 7;
        bits |= kept << shift;
        entry[2..4].copy_from_slice(&kept.to_le_bytes());
    }
    Some((bits, extended.then_some(acl)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_plain_default_acl_becomes_permission_bits() {
        let default = acl(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]);
        assert_eq!(inherit(&default, 0o666), Some((0o640, None)));
    }

    #[test]
    fn the_mask_takes_the_place_of_the_group_bits() {
        let default = acl(&[(USER_OBJ, 7, 0), (2, 7, 1000), (GROUP_OBJ, 5, 0), (MASK, 7, 0), (OTHER, 5, 0)]);
        let (bits, own) = inherit(&default, 0o660).unwrap();
        assert_eq!(bits, 0o660);
        assert_eq!(own, Some(acl(&[(USER_OBJ, 6, 0), (2, 7, 1000), (GROUP_OBJ, 5, 0), (MASK, 6, 0), (OTHER, 0, 0)])));
    }

    #[test]
    fn other_bytes_are_no_acl() {
        assert_eq!(inherit(b"", 0o644), None);
        assert_eq!(inherit(&[2, 0, 0, 0, 1], 0o644), None);
        assert_eq!(inherit(&[9, 0, 0, 0], 0o644), None);
    }
}
