use super::*;
use crate::reference::{assert_near, model};

/// Writes files as `docs/gguf.md` lays them out.
#[derive(Default)]
struct Writer {
    pairs: Vec<u8>,
    pair_count: u64,
    infos: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl Writer {
    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Writer {
        self.pairs.extend([&Writer::text(key), &kind.to_le_bytes()[..], value].concat());
        self.pair_count += 1;
        self
    }

    /// `sizes` with the fastest first.
    fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, data: &[u8]) -> Writer {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.infos.extend(Writer::text(name));
        self.infos.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| self.infos.extend(size.to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.tensor_count += 1;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.pair_count.to_le_bytes());
        bytes.extend([self.pairs.as_slice(), &self.infos].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

fn error(bytes: &[u8]) -> String {
    format!("{:#}", parse(bytes).unwrap_err())
}

fn example() -> Writer {
    let three_numbers: Vec<u8> = [&5u32.to_le_bytes()[..], &3u64.to_le_bytes()].concat();
    let values = [-1i32, 0, 7].iter().flat_map(|value| value.to_le_bytes());
    let two_texts: Vec<u8> = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes()].concat();
    // Sixteen bytes, low halves 0 … 15, high halves 15 … 0.
    let nibbles: Vec<u8> = (0..16u8).map(|low| (15 - low) << 4 | low).collect();
    let half = 0x3800u16.to_le_bytes(); // 0.5
    let minus_two = 0xc000u16.to_le_bytes();
    let signed: Vec<u8> = (0..32i8).map(|value| (value - 16) as u8).collect();
    Writer::default()
        .pair("a.text", 8, &Writer::text("naïve"))
        .pair("a.byte", 0, &[200])
        .pair("a.large", 10, &u64::MAX.to_le_bytes())
        .pair("a.float", 6, &1.5f32.to_le_bytes())
        .pair("a.flag", 7, &[1])
        .pair("numbers", 9, &three_numbers.into_iter().chain(values).collect::<Vec<u8>>())
        .pair("texts", 9, &[two_texts, Writer::text("x"), Writer::text("")].concat())
        .tensor("f32", &[3, 2], 0, &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat())
        .tensor("f16", &[2], 1, &[half, minus_two].concat())
        .tensor("bf16", &[1], 30, &[0xc0, 0x3f])
        .tensor("q4_0", &[32], 2, &[&half[..], &nibbles].concat())
        .tensor("q4_1", &[32], 3, &[&half[..], &minus_two, &nibbles].concat())
        .tensor("q8_0", &[32, 1], 8, &[&half[..], &signed].concat())
}

#[test]
fn metadata_and_tensors_come_back_as_they_were_written() {
    let (metadata, tensors) = parse(&example().bytes()).unwrap();
    assert_eq!(metadata.text("a.text").unwrap(), "naïve");
    assert_eq!(metadata.integer("a.byte").unwrap(), 200);
    assert_eq!(metadata.get("a.large"), Some(&Value::Integer(u64::MAX.into())));
    assert_eq!(metadata.float("a.float").unwrap(), 1.5);
    assert_eq!(metadata.get("a.flag"), Some(&Value::Bool(true)));
    assert_eq!(metadata.integers("numbers").unwrap(), [-1, 0, 7]);
    assert_eq!(metadata.texts("texts").unwrap(), ["x", ""]);
    for (found, expected) in [
        (format!("{:#}", metadata.text("a.byte").unwrap_err()), "a.byte is a whole number, not a text"),
        (format!("{:#}", metadata.integer("a.large").unwrap_err()), "a.large is no whole number of 64 bits"),
        (format!("{:#}", metadata.float("absent").unwrap_err()), "absent is missing in its metadata"),
    ] {
        assert_eq!(found, expected);
    }
    assert_eq!(tensors["f32"].size(), [2, 3], "the file has the fastest dimension first");
    assert_near(&tensors["f32"], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.0);
    assert_near(&tensors["f16"], &[0.5, -2.0], 0.0);
    assert_near(&tensors["bf16"], &[1.5], 0.0);
}

#[test]
fn quantised_values_are_widened_as_ggml_defines_it() {
    let (_, tensors) = parse(&example().bytes()).unwrap();
    let up = || (0..16).map(f64::from);
    let q: Vec<f64> = up().chain(up().rev()).collect();
    let of = |widen: fn(f64) -> f64| q.iter().map(|q| widen(*q)).collect::<Vec<f64>>();
    assert_near(&tensors["q4_0"], &of(|q| 0.5 * (q - 8.0)), 0.0);
    assert_near(&tensors["q4_1"], &of(|q| 0.5 * q - 2.0), 0.0);
    let signed: Vec<f64> = (-16..16).map(|q| 0.5 * f64::from(q)).collect();
    assert_near(&tensors["q8_0"], &signed, 0.0);
}

#[test]
fn half_precision_is_that_of_libtorch() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let expected = Tensor::from_data_size(&all, &[1 << 16], Kind::Half).to_kind(Kind::Float);
    let (pairs, _) = all.as_chunks::<2>();
    let found: Vec<f32> = pairs.iter().map(|[low, high]| half(*low, *high)).collect();
    assert!(Tensor::from_slice(&found).allclose(&expected, 0.0, 0.0, true));
}

/// Every truncation and every single wrong byte of the head is an error or another sound file, never a panic, and
/// never a great allocation.
#[test]
fn damaged_files_are_refused_without_a_panic() {
    let whole = example().bytes();
    for length in 0..whole.len() {
        assert!(parse(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
    let head = whole.len() - example().data.len();
    for at in 0..head {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = parse(&damaged);
        }
    }
}

#[test]
fn a_hostile_file_is_told_what_is_wrong_with_it() {
    let endless = [&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    let nested = |depth: usize| -> Vec<u8> {
        let array = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        [array.repeat(depth), [&0u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat()].concat()
    };
    let shared = {
        let mut writer = example();
        // A second tensor that claims the bytes of the first.
        writer.infos.extend(Writer::text("again"));
        writer.infos.extend([&1u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat());
        writer.infos.extend([&0u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat());
        writer.tensor_count += 1;
        writer
    };
    let empty = Writer::default;
    for (bytes, expected) in [
        (b"GGML".to_vec(), "it does not begin with GGUF"),
        (b"GGUF\x01\0\0\0".to_vec(), "its version is 1"),
        (b"GGUF\0\0\0\x03".to_vec(), "versions 2 and 3, little-endian"),
        (empty().pair("a", 9, &endless).bytes(), "the value of a: it ends where 4 bytes"),
        (empty().pair("a", 9, &nested(9)).bytes(), "arrays lie in arrays"),
        (empty().pair("a", 13, &[]).bytes(), "there is no kind 13 of values"),
        (empty().pair("a", 7, &[1]).pair("a", 7, &[1]).bytes(), "a is there twice"),
        (empty().pair("a", 8, &[&1u64.to_le_bytes()[..], &[0xff]].concat()).bytes(), "is not UTF-8"),
        (empty().pair("general.alignment", 4, &24u32.to_le_bytes()).bytes(), "not a power of two"),
        (empty().tensor("t", &[1, 1, 1, 1, 1], 0, &[0; 4]).bytes(), "the tensor t: it has 5 dimensions"),
        (empty().tensor("t", &[0], 0, &[]).bytes(), "holds no values"),
        (empty().tensor("t", &[33], 3, &[0; 40]).bytes(), "rows of 33 values are not made of blocks of 32"),
        (empty().tensor("t", &[32], 14, &[]).bytes(), "ggml's type 14 is not read"),
        (empty().tensor("t", &[u64::MAX, 2], 0, &[]).bytes(), "is too large"),
        (empty().tensor("t", &[4], 0, &[0; 8]).bytes(), "take more bytes than the 8 that follow"),
        (shared.bytes(), "take more bytes"),
    ] {
        let found = error(&bytes);
        assert!(found.contains(expected), "{found}, not {expected}");
    }
}

#[test]
fn smollm2_s_file_is_widened_to_the_bits_of_ggml_s_own_package() {
    let file = read(&model("smollm2-135m").join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    assert_eq!(file.tensors.values(), 134_515_008, "its published number of parameters");
    let goldens: serde_json::Value =
        serde_json::from_str(include_str!("../../../goldens/language.json")).unwrap();
    assert_eq!(file.tensors.digest().unwrap(), goldens["smollm2"]["digest"]);
    assert_eq!(file.metadata.text("general.architecture").unwrap(), "llama");
    assert_eq!(file.metadata.texts("tokenizer.ggml.tokens").unwrap().len(), 49_152);
}
