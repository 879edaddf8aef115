use super::*;
use crate::reference::{model, vocabulary};
use crate::weights::gguf;

fn clip() -> ClipTokenizer {
    ClipTokenizer::open(&vocabulary("clip")).unwrap()
}

fn gpt2() -> LanguageTokenizer {
    LanguageTokenizer::open(&vocabulary("gpt2")).unwrap()
}

#[test]
fn clip_s_ids_are_open_clip_s() {
    let clip = clip();
    assert_eq!(clip.vocabulary(), 49_408);
    for (caption, ids) in [
        ("a photo of a cat", vec![320, 1125, 539, 320, 2368]),
        ("A Dog, running 42 miles!", vec![320, 1929, 267, 2761, 275, 273, 3446, 256]),
        ("café naïve 🐱", vec![15304, 1097, 35689, 563, 22979]),
        ("centre-weighted field-armour", vec![2916, 268, 43179, 1570, 268, 18503]),
        ("", vec![]),
    ] {
        let expected: Vec<i64> = [49406].into_iter().chain(ids).chain([49407]).collect();
        assert_eq!(clip.encode(caption, 77).unwrap(), expected, "{caption}");
    }
}

#[test]
fn captions_of_the_web_are_cleaned_before_clip_sees_them() {
    let clip = clip();
    let plain = clip.encode("tom & jerry's \"cat\"", 77).unwrap();
    assert_eq!(clip.encode("  Tom &amp;amp; Jerry&#39;s\n\t&quot;CAT&quot; ", 77).unwrap(), plain);
}

#[test]
fn a_caption_too_long_for_clip_keeps_its_end() {
    let clip = clip();
    let long = "cat ".repeat(200);
    let ids = clip.encode(&long, 77).unwrap();
    assert_eq!(ids.len(), 77);
    assert_eq!((ids[0], ids[1], ids[75], ids[76]), (49406, 2368, 2368, 49407));
    // 75 tokens fit to the last one.
    let fits = "cat ".repeat(75);
    assert_eq!(clip.encode(&fits, 77).unwrap(), ids);
}

/// Byte pair encoding in so many words: while there is a pair that merges, the pair that merges first is merged
/// wherever it stands.
fn by_hand(
    word: &str,
    merges: &HashMap<(String, String), usize>,
    vocabulary: &HashMap<String, i64>,
) -> Vec<i64> {
    let characters: Vec<char> = byte_characters().collect();
    let bytes = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    let order: Vec<u8> = bytes.chain((0..=b' ').chain(0x7f..=0xa0).chain([0xad])).collect();
    let symbol = |byte: &u8| characters[order.iter().position(|other| other == byte).unwrap()].to_string();
    let mut symbols: Vec<String> = word.as_bytes().iter().map(symbol).collect();
    symbols.last_mut().unwrap().push_str("</w>");
    loop {
        let pairs = symbols.windows(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        let Some(first) = pairs.filter(|pair| merges.contains_key(pair)).min_by_key(|pair| merges[pair])
        else {
            return symbols.iter().map(|symbol| vocabulary[symbol]).collect();
        };
        let mut merged: Vec<String> = Vec::new();
        let mut rest = symbols.as_slice();
        while let [symbol, after @ ..] = rest {
            if !after.is_empty() && (symbol, &after[0]) == (&first.0, &first.1) {
                merged.push(format!("{symbol}{}", after[0]));
                rest = &after[1..];
            } else {
                merged.push(symbol.clone());
                rest = after;
            }
        }
        symbols = merged;
    }
}

#[test]
fn the_crate_s_merging_is_that_of_the_definition() {
    let text = text_of(&vocabulary("clip").join(format!("{CLIP_VOCABULARY}.gz"))).unwrap();
    let pairs = merges(text.lines().skip(1).take(CLIP_MERGES)).unwrap();
    let bytes: Vec<String> = byte_characters().map(String::from).collect();
    let tokens = bytes.iter().cloned().chain(bytes.iter().map(|byte| format!("{byte}</w>")));
    let tokens = tokens.chain(pairs.iter().map(|(left, right)| format!("{left}{right}")));
    let vocabulary: HashMap<String, i64> = tokens.zip(0..).collect();
    let ranks: HashMap<(String, String), usize> = pairs.into_iter().zip(0..).collect();
    let clip = clip();
    for word in [
        "photosynthesis",
        "banana",
        "naïvely",
        "mississippi",
        "🐱",
        "日本語",
        "llanfairpwllgwyngyll",
        "aaaaaaa",
    ] {
        let ids = clip.encode(word, 77).unwrap();
        assert_eq!(ids[1..ids.len() - 1], by_hand(word, &ranks, &vocabulary), "{word}");
    }
}

#[test]
fn gpt_2_s_ids_are_tiktoken_s() {
    let gpt2 = gpt2();
    assert_eq!((gpt2.vocabulary(), gpt2.id(END_OF_TEXT)), (50_257, Some(50_256)));
    for (text, ids) in [
        ("Hello world", vec![15496, 995]),
        ("a photo of a cat", vec![64, 4590, 286, 257, 3797]),
        ("A cabin on a lake", vec![32, 9351, 319, 257, 13546]),
        ("café 🐱 don't", vec![66, 1878, 2634, 12520, 238, 109, 836, 470]),
        ("", vec![]),
    ] {
        assert_eq!(gpt2.encode(text).unwrap(), ids, "{text}");
    }
}

#[test]
fn every_text_gets_itself_back_from_byte_pairs() {
    let file = model("smollm2-135m").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let smollm2 = LanguageTokenizer::from_gguf(&gguf::read(&file).unwrap().metadata).unwrap();
    let printing: String = ('\0'..'\u{3000}').filter(|c| !c.is_control()).collect();
    let texts = ["  two  spaces \n\n tab\t", "Zürich – 北京 🐱‍👤", "\u{feff}don't we'll I'M 12345", &printing];
    for tokenizer in [gpt2(), smollm2] {
        for text in texts {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        }
    }
    let every_byte_of_one: String = ('\0'..='\u{7f}').collect();
    assert_eq!(gpt2().decode(&gpt2().encode(&every_byte_of_one).unwrap()).unwrap(), every_byte_of_one);
}

#[test]
fn a_vocabulary_that_is_missing_or_damaged_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = format!("{:#}", ClipTokenizer::open(folder.path()).err().unwrap());
    assert!(error.contains("neither tokenizer.json nor bpe_simple_vocab_16e6.txt"), "{error}");
    fs::write(folder.path().join(CLIP_VOCABULARY), "#version\na b\n").unwrap();
    let error = format!("{:#}", ClipTokenizer::open(folder.path()).err().unwrap());
    assert!(error.contains("it has 1 merges, not 48894"), "{error}");

    let error = format!("{:#}", LanguageTokenizer::open(folder.path()).err().unwrap());
    assert!(error.contains("there is no tokenizer in"), "{error}");
    fs::write(folder.path().join("vocab.json"), "{\"a\": 0, \"b\": 1, \"ab\": 2}").unwrap();
    fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
    let error = format!("{:#}", LanguageTokenizer::open(folder.path()).err().unwrap());
    assert!(error.contains("lacks 254 of the 256 bytes"), "{error}");
}
