//! Zip files without compression, in memory (PKWARE's APPNOTE 6.3, the parts that every reader knows).
//!
//! A crate for it would be a dozen more for what takes these lines. Without compression and without times the same files
//! give the same bytes.

/// The first of January 1980, the earliest day that the format knows.
const DATE: u16 = (1 << 5) | 1;
/// Version 1.0 of the format is enough.
const VERSION: u16 = 10;

/// A zip of files by name, with a comment.
///
/// # Panics
/// If anything is larger than the format's plain fields hold: 65535 files, a name or comment of 64 KiB, 4 GiB.
pub fn stored(files: &[(&str, &[u8])], comment: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in files {
        let offset = four(out.len());
        let mut facts = Vec::new();
        words(&mut facts, &[VERSION, 0, 0, 0, DATE]); // no flags, stored, midnight
        let size = four(data.len());
        [checksum(data), size, size].iter().for_each(|fact| facts.extend(fact.to_le_bytes()));
        words(&mut facts, &[two(name.len()), 0]); // no extra fields
        out.extend(b"PK\x03\x04");
        out.extend(&facts);
        out.extend(name.as_bytes());
        out.extend(*data);
        directory.extend(b"PK\x01\x02");
        words(&mut directory, &[VERSION]);
        directory.extend(&facts);
        words(&mut directory, &[0, 0, 0]); // no comment, the first disk, no attributes
        directory.extend(0u32.to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, size, count) = (four(out.len()), four(directory.len()), two(files.len()));
    out.extend(directory);
    out.extend(b"PK\x05\x06");
    words(&mut out, &[0, 0, count, count]);
    [size, start].iter().for_each(|fact| out.extend(fact.to_le_bytes()));
    words(&mut out, &[two(comment.len())]);
    out.extend(comment.as_bytes());
    out
}

fn words(out: &mut Vec<u8>, words: &[u16]) {
    words.iter().for_each(|word| out.extend(word.to_le_bytes()));
}

fn two(size: usize) -> u16 {
    u16::try_from(size).expect("a field of two bytes")
}

fn four(size: usize) -> u32 {
    u32::try_from(size).expect("a field of four bytes")
}

/// CRC-32 with the polynomial of Ethernet, bit-reversed (0xedb88320).
fn checksum(data: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (byte, entry) in (0u32..).zip(&mut table) {
        *entry = (0..8).fold(byte, |value, _| (value >> 1) ^ (0xedb8_8320 & (value & 1).wrapping_neg()));
    }
    !data.iter().fold(!0, |value: u32, &byte| (value >> 8) ^ table[(value as u8 ^ byte) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_has_its_published_check_value() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(checksum(b""), 0);
    }

    /// The bytes that Python's zipfile writes for the same files, but for the system and the rights of a file, which it
    /// notes and we do not.
    #[test]
    fn the_bytes_are_those_of_the_format() {
        let bytes = stored(&[("a.tsv", b"x\n"), ("b", b"")], "no c");
        let local = b"PK\x03\x04\x0a\0\0\0\0\0\0\0\x21\0";
        assert_eq!(bytes[..local.len()], *local);
        assert_eq!(
            bytes[14..30],
            [&checksum(b"x\n").to_le_bytes()[..], &[2, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0]].concat()
        );
        assert_eq!(bytes[30..37], *b"a.tsvx\n");
        assert_eq!(bytes[37..41], *b"PK\x03\x04");
        let end = bytes.len() - 22 - 4;
        assert_eq!(bytes[end..end + 12], *b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
        let at = |place: usize| u32::from_le_bytes(bytes[place..place + 4].try_into().unwrap()) as usize;
        let (size, start) = (at(end + 12), at(end + 16));
        assert_eq!((start, start + size), (37 + 30 + 1, end));
        assert_eq!(bytes[start..start + 4], *b"PK\x01\x02");
        assert_eq!(at(start + 46 + 5 + 42), 37, "where the second file begins");
        assert_eq!(bytes[end + 20..], *b"\x04\0no c");
    }
}
