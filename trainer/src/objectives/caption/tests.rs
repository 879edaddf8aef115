use super::*;
use crate::models::language::tiny;
use crate::random::SplitMix64;
use crate::reference::assert_near;
use crate::weights::bitwise_equal;

/// As in `goldens/language.py`: the third says nothing, and only its end is scored.
fn captions() -> Vec<Vec<i64>> {
    vec![vec![3, 1, 4], vec![1, 5, 9, 2, 6], vec![]]
}

fn prefix(lm: &LanguageModel) -> Tensor {
    tiny::values(12, "prefix", &[3, 2, lm.dim()], 2.0)
}

fn value(loss: Result<Tensor>) -> f64 {
    loss.unwrap().double_value(&[])
}

#[test]
fn loss_and_gradient_are_those_of_hugging_face_s_labels() {
    for (lm, path) in
        [(tiny::gpt2(), "gpt2"), (tiny::llama(false), "llama.tied"), (tiny::llama(true), "llama.untied")]
    {
        let prefix = prefix(&lm).set_requires_grad(true);
        let loss = loss(&lm, &prefix, &captions()).unwrap();
        assert_near(&loss, &tiny::numbers(&format!("{path}.loss")), 1e-5);
        let gradients = Tensor::run_backward(&[loss], &[&prefix], false, false);
        assert_near(&gradients[0], &tiny::numbers(&format!("{path}.d_prefix")), 1e-5);
    }
}

#[test]
fn gradients_are_the_finite_differences() {
    for lm in [tiny::in_f64(tiny::gpt2()), tiny::in_f64(tiny::llama(true))] {
        let double = |tensor: Tensor| tensor.to_kind(Kind::Double).set_requires_grad(true);
        let map = LinearMap::new(4, lm.dim(), 3);
        let map = LinearMap { weight: double(map.weight), bias: double(map.bias) };
        let tokens = double(initial::normal(4, "tokens", &[3, 2, 4], 1.0));
        let compute = || loss(&lm, &map.forward(&tokens), &captions()).unwrap();
        let gradients = Tensor::run_backward(&[compute()], &[&map.weight, &map.bias, &tokens], false, false);
        let mut draws = SplitMix64::new(5);
        for (tensor, gradient) in [&map.weight, &map.bias, &tokens].into_iter().zip(gradients) {
            let flat = tensor.detach().flatten(0, -1);
            for _ in 0..6 {
                let at = draws.below(flat.numel() as u64) as i64;
                let moved = |by: f64| {
                    let _ = flat.get(at).g_add_scalar_(by);
                    let loss = compute().double_value(&[]);
                    let _ = flat.get(at).g_add_scalar_(-by);
                    loss
                };
                // In f64 a step of 1e-4 leaves errors of about 1e-8.
                let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                let found = gradient.flatten(0, -1).double_value(&[at]);
                assert!((found - slope).abs() < 1e-6, "{found} {slope}");
            }
        }
    }
}

#[test]
fn the_caption_and_its_first_end_are_scored_and_nothing_else() {
    let lm = tiny::gpt2();
    let prefix = prefix(&lm).narrow(0, 0, 1);
    let plain = loss(&lm, &prefix, &[vec![3, 1, 4]]).unwrap();
    // The end may be given or not; what follows it is neither scored nor seen.
    for caption in [vec![3, 1, 4, 256], vec![3, 1, 4, 256, 256, 256], vec![3, 1, 4, 256, 9, 9, 256]] {
        assert!(bitwise_equal(&loss(&lm, &prefix, &[caption]).unwrap(), &plain));
    }
    // By hand: positions 1 … 4 of prefix, prefix, 3, 1, 4 foretell 3, 1, 4 and the end.
    let ids = Tensor::from_slice(&[3i64, 1, 4]).unsqueeze(0);
    let logits = lm.logits(&Tensor::cat(&[&prefix, &lm.embed_tokens(&ids)], 1), None).unwrap();
    let log_likelihoods = logits.log_softmax(-1, Kind::Float);
    let expected: f64 = [(1, 3), (2, 1), (3, 4), (4, 256)]
        .iter()
        .map(|(at, id)| -log_likelihoods.double_value(&[0, *at, *id]))
        .sum();
    assert!((plain.double_value(&[]) - expected / 4.0).abs() < 1e-5);
}

#[test]
fn the_mean_runs_over_the_scored_tokens_of_the_batch() {
    let lm = tiny::llama(false);
    let prefix = prefix(&lm);
    let each: f64 = captions()
        .into_iter()
        .enumerate()
        .map(|(row, caption)| {
            let scored = caption.len() as f64 + 1.0;
            scored * value(loss(&lm, &prefix.narrow(0, row as i64, 1), &[caption]))
        })
        .sum();
    // 4, 6 and 1 scored tokens.
    assert!((value(loss(&lm, &prefix, &captions())) - each / 11.0).abs() < 1e-5);
}

#[test]
fn with_a_map_of_zeros_the_images_do_not_matter() {
    let lm = tiny::gpt2();
    let map = LinearMap {
        weight: Tensor::zeros([8, 4], (Kind::Float, tch::Device::Cpu)),
        ..LinearMap::new(4, 8, 1)
    };
    let bias = initial::normal(1, "bias", &[8], 1.0);
    let map = LinearMap { bias: bias.shallow_clone(), ..map };
    let of =
        |seed| value(loss(&lm, &map.forward(&initial::normal(seed, "tokens", &[3, 2, 4], 1.0)), &captions()));
    let constant = bias.expand([3, 2, 8], false);
    assert_eq!(of(1), of(2));
    assert!((of(1) - value(loss(&lm, &constant, &captions()))).abs() < 1e-6);
}

#[test]
fn only_the_map_and_the_images_get_gradients() {
    let lm = tiny::llama(true);
    let before = lm.tensors().digest().unwrap();
    let map = LinearMap::new(4, lm.dim(), 1);
    let map =
        LinearMap { weight: map.weight.set_requires_grad(true), bias: map.bias.set_requires_grad(true) };
    let tokens = initial::normal(2, "tokens", &[3, 2, 4], 1.0).set_requires_grad(true);
    loss(&lm, &map.forward(&tokens), &captions()).unwrap().backward();
    for tensor in [&map.weight, &map.bias, &tokens] {
        assert!(tensor.grad().abs().max().double_value(&[]) > 0.0);
    }
    assert!(lm.tensors().iter().all(|(_, tensor)| !tensor.grad().defined()));
    assert_eq!(lm.tensors().digest().unwrap(), before);
}

#[test]
fn the_prefix_takes_the_first_positions() {
    let lm = tiny::gpt2();
    // A prefix that is the embedding of text scores what follows as that text would.
    let text = Tensor::from_slice(&[72i64, 101]).unsqueeze(0);
    let all = Tensor::from_slice(&[72i64, 101, 3, 1]).unsqueeze(0);
    let logits = lm.logits(&lm.embed_tokens(&all), None).unwrap().log_softmax(-1, Kind::Float);
    let expected: f64 =
        [(1, 3), (2, 1), (3, 256)].iter().map(|(at, id)| -logits.double_value(&[0, *at, *id])).sum();
    assert!((value(loss(&lm, &lm.embed_tokens(&text), &[vec![3, 1]])) - expected / 3.0).abs() < 1e-5);
}

#[test]
fn a_map_has_the_published_number_of_values() {
    let map = LinearMap::new(768, 768, 0);
    assert_eq!(map.weight.numel() + map.bias.numel(), 590_592);
    // 590 thousand draws give the deviation to a tenth of a percent.
    let deviation = map.weight.std(true).double_value(&[]);
    assert!((deviation * (3f64 * 768.0).sqrt() - 1.0).abs() < 0.005, "{deviation}");
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let lm = tiny::gpt2();
    let prefix = prefix(&lm);
    for (prefix, captions, expected) in [
        (prefix.narrow(1, 0, 0), captions(), "can only be told from a prefix"),
        (prefix.shallow_clone(), vec![vec![1]], "there are 3 prefixes and 1 captions"),
        (prefix.shallow_clone(), vec![vec![1], vec![257], vec![]], "beyond the 257"),
        (prefix.shallow_clone(), vec![vec![1; 20], vec![], vec![]], "takes up to 16 positions"),
    ] {
        let error = loss(&lm, &prefix, &captions).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_share_of_the_prefix_is_dropped_and_the_rest_makes_up_for_it() {
    let prefix = Tensor::ones([20, 50, 40], (Kind::Float, tch::Device::Cpu));
    let dropped = |share, seed| drop_values(prefix.shallow_clone(), share, SplitMix64::new(seed));
    assert!(bitwise_equal(&dropped(0.0, 1), &prefix));
    let tenth = dropped(0.1, 1);
    let zeros = tenth.eq(0.0).sum(Kind::Int64).int64_value(&[]) as f64 / 40_000.0;
    // 40,000 draws give a tenth to ±0.0015, one standard deviation.
    assert!((zeros - 0.1).abs() < 0.006, "{zeros}");
    assert!((tenth.max().double_value(&[]) - 1.0 / 0.9).abs() < 1e-6);
    assert!((tenth.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.007);
    assert!(bitwise_equal(&tenth, &dropped(0.1, 1)) && !bitwise_equal(&tenth, &dropped(0.1, 2)));
}
