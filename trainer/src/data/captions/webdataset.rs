//! WebDataset: tar files, called shards, in which a sample is a run of members with one name and different endings:
//! `000012.jpg` the image, `000012.txt` the caption, `000012.json` whatever else is known. The name ends at the first dot
//! after the last slash. Nothing is unpacked: a shard's headers are read once, then images and captions by their places.

use super::{Candidate, Picture, Text};
use crate::data::class_folder::ENDINGS;
use crate::data::dataset::Source;
use crate::data::tar::{self, Member};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// The samples of some shards in order, and how many were left out because they have no image or no caption.
pub fn read(shards: &[PathBuf], threads: usize) -> Result<(Vec<Candidate>, usize)> {
    let share = shards.len().div_ceil(threads.max(1)).max(1);
    let read: Vec<Result<Vec<Vec<Member>>>> = thread::scope(|scope| {
        let part = |shards: &[PathBuf]| shards.iter().map(|shard| tar::members(shard)).collect();
        let workers: Vec<_> = shards.chunks(share).map(|shards| scope.spawn(move || part(shards))).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<Vec<Vec<Member>>>>| {
            worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("reading a shard panicked")))
        };
        workers.into_iter().map(join).collect()
    });
    let (mut candidates, mut incomplete) = (Vec::new(), 0);
    let indexes = read.into_iter().collect::<Result<Vec<_>>>()?;
    for (shard, members) in shards.iter().zip(indexes.into_iter().flatten()) {
        let file: Arc<Path> = shard.as_path().into();
        for sample in members.chunk_by(|a, b| split(&a.name).0 == split(&b.name).0) {
            match candidate(&file, sample) {
                Some(candidate) => candidates.push(candidate),
                None => incomplete += 1,
            }
        }
    }
    ensure!(
        !candidates.is_empty(),
        "no sample of {} has an image ({}) and a caption (txt, or json with `caption`)",
        shards.iter().map(|shard| shard.display().to_string()).collect::<Vec<_>>().join(", "),
        ENDINGS.join(", ")
    );
    Ok((candidates, incomplete))
}

fn candidate(file: &Arc<Path>, sample: &[Member]) -> Option<Candidate> {
    let ending = |wanted: &str| sample.iter().find(|member| split(&member.name).1 == wanted);
    let image = sample.iter().find(|member| ENDINGS.contains(&split(&member.name).1.as_str()))?;
    let (text, json) = match (ending("txt"), ending("json")) {
        (Some(text), _) => (text, false),
        (None, json) => (json?, true),
    };
    let (name, begin, length) = (image.name.clone(), image.begin, image.length);
    Some(Candidate {
        key: split(&image.name).0.to_owned(),
        picture: Picture::Ready(Source::Member { file: file.clone(), name, begin, length, deflated: false }),
        text: Text::Member { file: file.clone(), begin: text.begin, length: text.length, json },
    })
}

/// The name of a sample and the ending of a member, lower case: `a/b.seg.PNG` is `a/b` and `seg.png`.
fn split(member: &str) -> (&str, String) {
    let file = member.rfind('/').map_or(0, |slash| slash + 1);
    match member[file..].find('.') {
        Some(dot) => (&member[..file + dot], member[file + dot + 1..].to_lowercase()),
        None => (member, String::new()),
    }
}

/// All names that a path with `{0000..0575}` stands for; the path itself where it has no braces.
pub fn expand(path: &str) -> Result<Vec<String>> {
    let Some((before, (range, after))) =
        path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return Ok(vec![path.to_owned()]);
    };
    let context = || format!("`{path}`: between the braces must be two numbers, such as {{0000..0575}}");
    let (first, last) = range.split_once("..").with_context(context)?;
    let (begin, end): (u64, u64) =
        (first.parse().with_context(context)?, last.parse().with_context(context)?);
    ensure!(begin <= end && end - begin < 1_000_000, context());
    let width = first.len();
    Ok((begin..=end).map(|number| format!("{before}{number:0width$}{after}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_named_up_to_the_first_dot_after_the_last_slash() {
        assert_eq!(split("a.b/00.seg.PNG"), ("a.b/00", "seg.png".to_owned()));
        assert_eq!(split("README"), ("README", String::new()));
    }

    #[test]
    fn braces_stand_for_numbers() {
        assert_eq!(expand("s-{008..010}.tar").unwrap(), ["s-008.tar", "s-009.tar", "s-010.tar"]);
        assert_eq!(expand("s.tar").unwrap(), ["s.tar"]);
        assert!(expand("s-{a..b}.tar").unwrap_err().to_string().contains("two numbers"));
        assert!(expand("s-{2..1}.tar").is_err());
    }
}
