//! Where the members of a tar file lie, so that they are read without unpacking: POSIX ustar with pax headers and GNU's
//! long names, what Python's tarfile and every tar write. Only the headers are read, 512 bytes a member.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Everything in a tar begins at a multiple of this, bytes.
const BLOCK: u64 = 512;
/// Longest name or pax header, bytes: a bound on memory when a file is damaged.
const HEADER_MAX: u64 = 1 << 20;

/// A regular file in a tar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its path in the tar.
    pub name: String,
    /// Where its bytes begin.
    pub begin: u64,
    /// How many there are.
    pub length: u64,
}

/// The regular files of a tar in order.
///
/// # Errors
/// The file is missing, compressed, damaged, or was cut off.
pub fn members(path: &Path) -> Result<Vec<Member>> {
    let file = File::open(path)
        .with_context(|| format!("opening the tar file {}; are all parts there?", path.display()))?;
    read_members(&file).with_context(|| format!("reading the tar file {}", path.display()))
}

fn read_members(file: &File) -> Result<Vec<Member>> {
    let size = file.metadata()?.len();
    let mut members = Vec::new();
    // What a pax or GNU header says of the member after it.
    let (mut long_name, mut long_size) = (None, None);
    let mut at = 0;
    loop {
        let mut header = [0u8; BLOCK as usize];
        if at + BLOCK > size {
            bail!("it ends after {size} bytes without a tar's end mark, so it was cut off; fetch it again");
        }
        file.read_exact_at(&mut header, at)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        check(&header, at)?;
        let length = match long_size.take() {
            Some(size) => size,
            None => number(&header[124..136]).with_context(|| format!("the size at byte {at}"))?,
        };
        let begin = at + BLOCK;
        let end = begin.checked_add(length).context("it is damaged: a size is too large")?;
        let name = || text(&header[..100]);
        ensure!(
            end <= size,
            "it was cut off in its member `{}`: that ends at byte {end}, the file has {size}; fetch it again",
            long_name.clone().unwrap_or_else(name)
        );
        let content = || {
            ensure!(length <= HEADER_MAX, "it is damaged: a name of {length} bytes");
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, begin)?;
            Ok(bytes)
        };
        match header[156] {
            b'L' => long_name = Some(text(&content()?)),
            b'x' => {
                for (key, value) in pax_records(&content()?)? {
                    match key.as_str() {
                        "path" => long_name = Some(value),
                        "size" => long_size = Some(value.parse().context("a pax size is no number")?),
                        _ => {}
                    }
                }
            }
            // A regular file, as POSIX and as V7 mark it.
            b'0' | 0 => {
                let prefix = if &header[257..262] == b"ustar" && header[262] == 0 {
                    text(&header[345..500])
                } else {
                    String::new()
                };
                let name = long_name.take().unwrap_or_else(|| match prefix.as_str() {
                    "" => name(),
                    prefix => format!("{prefix}/{}", name()),
                });
                members.push(Member { name, begin, length });
            }
            // Folders, links and the like, and pax headers for the whole archive.
            _ => long_name = None,
        }
        at = begin + length.div_ceil(BLOCK) * BLOCK;
    }
}

/// Compares the header's sum with its bytes, those of the sum taken as spaces.
fn check(header: &[u8; BLOCK as usize], at: u64) -> Result<()> {
    ensure!(
        !(at == 0 && (header.starts_with(&[0x1f, 0x8b]) || header.starts_with(b"BZh"))),
        "it is compressed, so its members cannot be read in any order; unpack it to a plain .tar"
    );
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = header[148..156].iter().map(|byte| u64::from(*byte)).sum();
    let expected = sum - own + 8 * u64::from(b' ');
    ensure!(
        number(&header[148..156]).is_ok_and(|found| found == expected),
        "there is no tar header at byte {at}: it is damaged or no tar file"
    );
    Ok(())
}

/// Octal digits, or binary where the first bit is set (GNU, sizes from 8 GiB).
fn number(field: &[u8]) -> Result<u64> {
    if field[0] & 0x80 != 0 {
        let value = field[1..].iter().fold(0u128, |value, byte| value << 8 | u128::from(*byte));
        return u64::try_from(value).context("a number is too large");
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8).with_context(|| format!("`{digits}` is no octal number"))
}

/// Up to the first zero byte.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Records `length key=value\n`; the length counts the whole record.
fn pax_records(mut bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let record = || {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let [key, value] = [&record[..equals], &record[equals + 1..]];
            Some((length, String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
        };
        let (length, key, value) = record().context("it is damaged: a pax header cannot be read")?;
        records.push((key.into_owned(), value.into_owned()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A ustar header.
    fn header(name: &str, kind: u8, length: usize) -> Vec<u8> {
        let mut header = vec![0u8; 512];
        header[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
        header[124..135].copy_from_slice(format!("{length:011o}").as_bytes());
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, kind, content.len());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    /// A tar of regular files, with its end mark.
    pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            files.iter().flat_map(|(name, content)| member(name, b'0', content)).collect();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<Member>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, bytes).unwrap();
        members(&path)
    }

    #[test]
    fn members_are_found_with_their_places() {
        let found = read(&tar(&[("a.txt", b"abc"), ("d/b.jpg", &[7; 600])])).unwrap();
        let expected = [("a.txt", 512, 3), ("d/b.jpg", 512 + 512 + 512, 600)];
        let expected = expected.map(|(name, begin, length)| Member { name: name.to_owned(), begin, length });
        assert_eq!(found, expected);
    }

    #[test]
    fn long_names_come_from_pax_and_gnu_headers() {
        let long = format!("{}.jpg", "x".repeat(150));
        let record = format!("{} path={long}\n", 150 + 4 + 10);
        assert_eq!(record.len(), 164);
        let parts = [
            member("folder/", b'5', b""),
            member("././@PaxHeader", b'x', record.as_bytes()),
            member("short", b'0', b"1"),
            member("././@LongLink", b'L', format!("{long}\0").as_bytes()),
            member("short", b'0', b"2"),
            member("plain", b'0', b"3"),
            vec![0; 1024],
        ];
        let names: Vec<String> =
            read(&parts.concat()).unwrap().into_iter().map(|member| member.name).collect();
        assert_eq!(names, [long.as_str(), &long, "plain"]);
    }

    #[test]
    fn a_tar_that_was_cut_off_says_where() {
        let whole = tar(&[("a.txt", b"abc"), ("b.jpg", &[7; 600])]);
        let error = |bytes: &[u8]| format!("{:#}", read(bytes).unwrap_err());
        let cut = error(&whole[..2000]);
        assert!(cut.contains("cut off in its member `b.jpg`") && cut.contains("fetch it again"), "{cut}");
        let unmarked = error(&whole[..whole.len() - 1024]);
        assert!(unmarked.contains("without a tar's end mark"), "{unmarked}");
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        assert!(error(&damaged).contains("no tar header at byte 0"));
        assert!(error(&[[0x1f, 0x8b].as_slice(), &[1; 600]].concat()).contains("unpack it"));
        let folder = tempfile::tempdir().unwrap();
        let error = members(&folder.path().join("b.tar")).unwrap_err().to_string();
        assert!(error.contains("b.tar; are all parts there?"), "{error}");
    }
}
