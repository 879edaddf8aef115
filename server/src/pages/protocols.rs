//! Which protocol a figure shows. A figure has one; the others are links, sorted by what a reader would change: how
//! features become a class, the arithmetic, how images are made and how the position table is resized.

use super::experiment::Choice;
use causeway_protocol::{Dtype, Positions, Preprocess, Protocol};

/// Links that change one thing about the protocol.
pub struct Switch {
    /// What they change.
    pub name: &'static str,
    /// The links.
    pub choices: Vec<Choice>,
}

/// The protocol to show: the one asked for, else DINO's k = 20 ("20 usually works best") in f32, else the largest vote,
/// else the first. None if the one asked for is not there, or there is none.
pub fn chosen<'a>(protocols: &'a [Protocol], asked: Option<&str>) -> Option<&'a Protocol> {
    if let Some(id) = asked {
        return protocols.iter().find(|protocol| protocol.id == id);
    }
    let usual = |protocol: &&Protocol| protocol.readout.k() == Some(20);
    let mut twenty = protocols.iter().filter(usual);
    let first = twenty.next();
    first
        .filter(|protocol| protocol.dtype == Dtype::F32)
        .or(twenty.find(|protocol| protocol.dtype == Dtype::F32))
        .or(first)
        .or(protocols.iter().filter(|p| p.readout.k().is_some()).max_by_key(|p| p.readout.k()))
        .or(protocols.first())
}

/// In the order of links: votes by k, then the probe, then zero-shot; smaller images first.
pub fn sort(protocols: &mut [Protocol]) {
    protocols.sort_by_key(|protocol| {
        (protocol.image_size, protocol.readout.k().unwrap_or(u32::MAX), protocol.readout.label())
    });
}

/// What may differ between protocols: its name, and its value in words.
type Thing = (&'static str, fn(&Protocol) -> String);

/// One switch for the readout, and one for each other thing in which the protocols differ. A link changes its own
/// thing and keeps the rest where such a protocol exists.
pub fn switches(protocols: &[Protocol], on: &Protocol, address: impl Fn(&str) -> String) -> Vec<Switch> {
    let things: [Thing; 4] = [
        ("Readout", |protocol| protocol.readout.label()),
        ("Arithmetic", |protocol| dtype_word(protocol.dtype).to_owned()),
        ("Images", images),
        ("Positions", |protocol| positions(protocol.positions).to_owned()),
    ];
    let mut switches = Vec::new();
    for (thing, (name, word)) in things.iter().enumerate() {
        let mut words: Vec<String> = Vec::new();
        for protocol in protocols {
            if !words.contains(&word(protocol)) {
                words.push(word(protocol));
            }
        }
        if words.len() < 2 && thing > 0 {
            continue;
        }
        let choices = words.into_iter().filter_map(|wanted| {
            let equal = |protocol: &&Protocol| {
                let others = things.iter().enumerate().filter(|(other, _)| *other != thing);
                others.filter(|(_, (_, word))| word(protocol) == word(on)).count()
            };
            // Of equally near ones the first: `max_by_key` would take the last.
            let with = protocols.iter().filter(|protocol| word(protocol) == wanted).rev();
            let nearest = with.max_by_key(equal)?;
            // Two probes of different strengths have one label: then the id tells them apart.
            let same =
                protocols.iter().filter(|other| word(other) == wanted && equal(other) == equal(&nearest));
            let peers: Vec<&Protocol> = if thing == 0 { same.collect() } else { vec![nearest] };
            let link = |protocol: &Protocol| {
                let plain = peers.len() == 1;
                let label = if plain { wanted.clone() } else { format!("{wanted} ({})", head(&protocol.id)) };
                Choice::new(label, address(&protocol.id), protocol.id == on.id || plain && wanted == word(on))
            };
            Some(peers.iter().map(|protocol| link(protocol)).collect::<Vec<Choice>>())
        });
        switches.push(Switch { name, choices: choices.flatten().collect() });
    }
    switches
}

/// The part of an id that says the readout.
fn head(id: &str) -> &str {
    ["-direct", "-crop"].iter().find_map(|word| id.split_once(word)).map_or(id, |(head, _)| head)
}

/// A protocol as captions name it.
pub fn words(protocol: &Protocol) -> String {
    format!(
        "{}, {} arithmetic, {}{} ({})",
        protocol.readout.label(),
        dtype_word(protocol.dtype),
        images(protocol),
        match protocol.positions {
            Positions::HfSize => String::new(),
            other => format!(", positions {}", positions(other)),
        },
        protocol.id
    )
}

fn images(protocol: &Protocol) -> String {
    let way = match protocol.preprocess {
        Preprocess::Direct => "direct",
        Preprocess::ResizeCrop => "crop",
    };
    format!("{way} {} px", protocol.image_size)
}

fn positions(positions: Positions) -> &'static str {
    match positions {
        Positions::HfSize => "by size",
        Positions::DinoScaleOffset => "DINO's",
        Positions::TimmAntialias => "timm's",
    }
}

/// An arithmetic as ids and tables write it.
pub fn dtype_word(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_protocol::{Feature, LinearProbe, Readout};

    fn protocol(readout: Readout, dtype: Dtype) -> Protocol {
        let id = format!("{}-direct224-cls-{}", readout.label().replace(' ', ""), dtype_word(dtype));
        let (preprocess, feature) = (Preprocess::Direct, Feature::Cls);
        Protocol { id, readout, preprocess, image_size: 224, feature, dtype, positions: Positions::HfSize }
    }

    fn vote(k: u32, dtype: Dtype) -> Protocol {
        protocol(Readout::Knn { k, temperature: 0.07, ties: String::new() }, dtype)
    }

    fn probe(dtype: Dtype) -> Protocol {
        protocol(Readout::LinearProbe(LinearProbe { c: vec![1.0] }), dtype)
    }

    /// Name, and (label, protocol, whether it is shown) of each link.
    type Told<'a> = (&'a str, Vec<(&'a str, &'a str, bool)>);

    fn told(switches: &[Switch]) -> Vec<Told<'_>> {
        switches
            .iter()
            .map(|switch| {
                let links = switch.choices.iter().map(|c| (c.label.as_str(), c.href.as_str(), c.on));
                (switch.name, links.collect())
            })
            .collect()
    }

    #[test]
    fn readout_is_a_switch_and_arithmetic_one_where_there_are_two() {
        let mut all = vec![probe(Dtype::F32), vote(20, Dtype::F32), vote(5, Dtype::F32)];
        sort(&mut all);
        let on = chosen(&all, None).unwrap();
        assert_eq!(on.id, "k20-direct224-cls-f32");
        assert_eq!(
            told(&switches(&all, on, str::to_owned)),
            [(
                "Readout",
                vec![
                    ("k 5", "k5-direct224-cls-f32", false),
                    ("k 20", "k20-direct224-cls-f32", true),
                    ("linear probe", "linearprobe-direct224-cls-f32", false),
                ]
            )]
        );
        all.push(vote(20, Dtype::Bf16));
        let on = chosen(&all, Some("k20-direct224-cls-bf16")).unwrap();
        let switches = switches(&all, on, str::to_owned);
        // The probe exists in f32 only, so its link changes the arithmetic, too.
        assert_eq!(
            told(&switches)[0].1.iter().map(|link| link.1).collect::<Vec<_>>(),
            ["k5-direct224-cls-f32", "k20-direct224-cls-bf16", "linearprobe-direct224-cls-f32"]
        );
        assert_eq!(
            told(&switches)[1],
            (
                "Arithmetic",
                vec![("f32", "k20-direct224-cls-f32", false), ("bf16", "k20-direct224-cls-bf16", true)]
            )
        );
    }

    #[test]
    fn the_usual_vote_in_f32_is_shown_first_and_an_unknown_protocol_never() {
        let all = [vote(20, Dtype::Bf16), vote(20, Dtype::F32)];
        assert_eq!(chosen(&all, None).unwrap().dtype, Dtype::F32);
        assert_eq!(
            chosen(&[probe(Dtype::F32), vote(1, Dtype::F32), vote(7, Dtype::F32)], None).unwrap().readout.k(),
            Some(7)
        );
        assert!(chosen(&all, Some("other")).is_none());
        assert!(words(&all[0]).starts_with("k 20, bf16 arithmetic, direct 224 px (k20-"));
    }
}
