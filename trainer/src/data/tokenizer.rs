//! Tokenizers: captions to the ids that a model was trained on. A `tokenizer.json` is read as it is; where only the
//! original vocabulary files exist (CLIP's merges, GPT-2's encoder and merges, a GGUF file's metadata), the same byte
//! pair encoding (arXiv 1508.07909) is put together from them.

use super::captions::unescape;
use crate::weights::gguf::Metadata;
use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::MultiGzDecoder;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// CLIP's vocabulary file: a comment, then merges; the first so many make the vocabulary.
const CLIP_VOCABULARY: &str = "bpe_simple_vocab_16e6.txt";
/// 49,408 tokens less 2 · 256 bytes and the two of start and end.
const CLIP_MERGES: usize = 48_894;
/// What CLIP takes for words; lower case comes before.
const CLIP_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
/// Start and end of a caption, as OpenAI and as OpenCLIP write them.
const CLIP_MARKS: [[&str; 2]; 2] =
    [["<|startoftext|>", "<|endoftext|>"], ["<start_of_text>", "<end_of_text>"]];
/// A plain vocabulary may be so large once unpacked; CLIP's is 3 MB.
const VOCABULARY_BYTES_MAX: u64 = 64 << 20;

/// GPT-2's end of a text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Reads a `tokenizer.json`. The file's own padding and truncation are turned off.
///
/// # Errors
/// A file that is missing or that the crate does not understand.
pub fn read(path: &Path) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    Ok(tokenizer)
}

/// The ids of a text.
pub fn ids(tokenizer: &Tokenizer, text: &str, with_marks: bool) -> Result<Vec<i64>> {
    let encoding =
        tokenizer.encode(text, with_marks).map_err(|error| anyhow!("tokenizing {text:?}: {error}"))?;
    Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
}

/// CLIP's tokenizer (arXiv 2103.00020, §2.4): lower-cased byte pairs, the end of a word marked by `</w>`.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: i64,
    end: i64,
}

impl ClipTokenizer {
    /// Opens `tokenizer.json`, or the original vocabulary `bpe_simple_vocab_16e6.txt`, plain or gzipped.
    ///
    /// # Errors
    /// None of these files, or one that is damaged.
    pub fn open(folder: &Path) -> Result<ClipTokenizer> {
        let json = folder.join("tokenizer.json");
        let plain = folder.join(CLIP_VOCABULARY);
        let gzipped = folder.join(format!("{CLIP_VOCABULARY}.gz"));
        let tokenizer = match [&json, &plain, &gzipped].into_iter().find(|path| path.is_file()) {
            None => {
                bail!("there is neither tokenizer.json nor {CLIP_VOCABULARY}[.gz] in {}", folder.display())
            }
            Some(path) if *path == json => read(path)?,
            Some(path) => clip_from_merges(&text_of(path)?).with_context(|| path.display().to_string())?,
        };
        let marks = CLIP_MARKS.iter().find_map(|[start, end]| {
            Some((tokenizer.token_to_id(start)?.into(), tokenizer.token_to_id(end)?.into()))
        });
        let (start, end) =
            marks.context("the vocabulary has no tokens for the start and the end of a caption")?;
        Ok(ClipTokenizer { tokenizer, start, end })
    }

    /// The ids of a caption between those of start and end, at most `context` of them; what is too long loses its
    /// tail and keeps its end. References of HTML are resolved twice and white space is collapsed, as in training;
    /// broken encodings are not repaired (CLIP's own code runs ftfy first).
    ///
    /// # Errors
    /// A caption that the tokenizer refuses.
    pub fn encode(&self, caption: &str, context: usize) -> Result<Vec<i64>> {
        let text = unescape(caption);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let words = ids(&self.tokenizer, &text, false)?.into_iter().take(context.saturating_sub(2));
        Ok([self.start].into_iter().chain(words).chain([self.end]).collect())
    }

    /// The id of a caption's end.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

/// The vocabulary is the bytes, the bytes at the end of a word, what each merge makes, and the two marks.
fn clip_from_merges(text: &str) -> Result<Tokenizer> {
    let merges = merges(text.lines().skip(1).take(CLIP_MERGES))?;
    ensure!(merges.len() == CLIP_MERGES, "it has {} merges, not {CLIP_MERGES}", merges.len());
    let bytes = || byte_characters().map(String::from);
    let tokens = bytes()
        .chain(bytes().map(|byte| byte + "</w>"))
        .chain(merges.iter().map(|(left, right)| format!("{left}{right}")))
        .chain(CLIP_MARKS[1].map(str::to_owned));
    let vocabulary: HashMap<String, u32> = tokens.zip(0..).collect();
    let words = Split::new(SplitPattern::Regex(CLIP_WORDS.to_owned()), SplitDelimiterBehavior::Removed, true)
        .map_err(|error| anyhow!("{error}"))?;
    let parts = vec![words.into(), ByteLevel::new(false, true, false).into()];
    byte_pairs(vocabulary, merges, Some("</w>"), parts, &CLIP_MARKS[1])
}

/// The tokenizer of a language model: byte pairs over bytes, so that there is no text without ids.
pub struct LanguageTokenizer {
    tokenizer: Tokenizer,
}

impl LanguageTokenizer {
    /// Opens `tokenizer.json`, or GPT-2's vocabulary under OpenAI's names (`encoder.json`, `vocab.bpe`) or Hugging
    /// Face's (`vocab.json`, `merges.txt`).
    ///
    /// # Errors
    /// None of these files, or one that is damaged.
    pub fn open(folder: &Path) -> Result<LanguageTokenizer> {
        let json = folder.join("tokenizer.json");
        if json.is_file() {
            return Ok(LanguageTokenizer { tokenizer: read(&json)? });
        }
        let pairs = [["encoder.json", "vocab.bpe"], ["vocab.json", "merges.txt"]];
        let there = |names: &[&str; 2]| names.iter().all(|name| folder.join(name).is_file());
        let Some([vocabulary, merges]) = pairs.into_iter().find(there) else {
            bail!(
                "there is no tokenizer in {}: neither tokenizer.json, nor encoder.json with vocab.bpe, nor vocab.json \
                 with merges.txt",
                folder.display()
            );
        };
        let path = |name: &str| -> PathBuf { folder.join(name) };
        let vocabulary: HashMap<String, u32> =
            serde_json::from_str(&text_of(&path(vocabulary))?).context(vocabulary)?;
        let merges = gpt2_merges(&text_of(&path(merges))?).context(merges)?;
        // Without its character a byte would vanish from the text.
        let lacking = byte_characters().filter(|byte| !vocabulary.contains_key(&byte.to_string())).count();
        ensure!(lacking == 0, "the vocabulary lacks {lacking} of the 256 bytes");
        LanguageTokenizer::from_byte_pairs(vocabulary, merges, false, &[END_OF_TEXT])
    }

    /// Puts the tokenizer together that a GGUF file describes: byte pairs with GPT-2's or SmolLM's rule for words.
    /// A byte that its vocabulary lacks vanishes, as in the model's own tokenizer: SmolLM2's has no six of the
    /// control characters.
    ///
    /// # Errors
    /// Another kind of tokenizer, or metadata that is missing.
    pub fn from_gguf(metadata: &Metadata) -> Result<LanguageTokenizer> {
        let model = metadata.text("tokenizer.ggml.model")?;
        ensure!(model == "gpt2", "its tokenizer is of kind {model}; only byte pairs (gpt2) are known");
        let single_digits = match metadata.text("tokenizer.ggml.pre")? {
            "gpt-2" => false,
            "smollm" => true,
            other => {
                bail!("its tokenizer takes words by the rule `{other}`; only gpt-2 and smollm are known")
            }
        };
        let tokens = metadata.texts("tokenizer.ggml.tokens")?;
        let kinds = metadata.integers("tokenizer.ggml.token_type")?;
        ensure!(kinds.len() == tokens.len(), "it has {} tokens and {} types", tokens.len(), kinds.len());
        // 3: control, 4: defined by the user; neither is ever made by merging.
        let marks = tokens.iter().zip(&kinds).filter(|(_, kind)| matches!(**kind, 3 | 4));
        let marks: Vec<&str> = marks.map(|(token, _)| *token).collect();
        let merges = merges(metadata.texts("tokenizer.ggml.merges")?.into_iter())?;
        let vocabulary = tokens.iter().map(|token| (*token).to_owned()).zip(0..).collect();
        LanguageTokenizer::from_byte_pairs(vocabulary, merges, single_digits, &marks)
    }

    fn from_byte_pairs(
        vocabulary: HashMap<String, u32>,
        merges: Vec<(String, String)>,
        single_digits: bool,
        marks: &[&str],
    ) -> Result<LanguageTokenizer> {
        let digits = single_digits.then(|| Digits::new(true).into());
        let parts = digits.into_iter().chain([ByteLevel::new(false, true, true).into()]).collect();
        Ok(LanguageTokenizer { tokenizer: byte_pairs(vocabulary, merges, None, parts, marks)? })
    }

    /// The ids of a text, nothing added.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        ids(&self.tokenizer, text, false)
    }

    /// The text of ids, marks left out.
    ///
    /// # Errors
    /// A negative id.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids = ids.iter().map(|id| Ok(u32::try_from(*id)?)).collect::<Result<Vec<u32>>>()?;
        self.tokenizer.decode(&ids, true).map_err(|error| anyhow!("decoding {ids:?}: {error}"))
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.tokenizer.token_to_id(token).map(i64::from)
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

fn byte_pairs(
    vocabulary: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    end_of_word: Option<&str>,
    parts: Vec<tokenizers::PreTokenizerWrapper>,
    marks: &[&str],
) -> Result<Tokenizer> {
    let mut model = BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges);
    if let Some(end_of_word) = end_of_word {
        model = model.end_of_word_suffix(end_of_word.to_owned());
    }
    let model = model.build().map_err(|error| anyhow!("the merges do not fit the vocabulary: {error}"))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    let marks: Vec<AddedToken> = marks.iter().map(|mark| AddedToken::from(*mark, true)).collect();
    tokenizer.add_special_tokens(marks).map_err(|error| anyhow!("{error}"))?;
    Ok(tokenizer)
}

/// The 256 characters that stand for bytes (GPT-2's table), in the order of CLIP's vocabulary: those that print stand
/// for themselves, the others follow from U+0100 on.
pub fn byte_characters() -> impl Iterator<Item = char> {
    let printing = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff).map(char::from);
    printing.chain('\u{100}'..='\u{143}')
}

/// Pairs such as `t h`, one a line.
fn merges<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>> {
    let pair = |line: &'a str| {
        let (left, right) = line.split_once(' ').with_context(|| format!("{line:?} is no merge of two"))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    lines.map(pair).collect()
}

fn gpt2_merges(text: &str) -> Result<Vec<(String, String)>> {
    merges(text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")))
}

/// A text file, gzipped if its name says so.
fn text_of(path: &Path) -> Result<String> {
    let context = || format!("reading {}", path.display());
    let file = fs::File::open(path).with_context(context)?;
    let gzipped = path.extension().is_some_and(|ending| ending == "gz");
    let reader: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut text = String::new();
    reader.take(VOCABULARY_BYTES_MAX + 1).read_to_string(&mut text).with_context(context)?;
    ensure!(
        text.len() as u64 <= VOCABULARY_BYTES_MAX,
        "{} is no vocabulary: it is too large",
        path.display()
    );
    Ok(text)
}

#[cfg(test)]
mod tests;
