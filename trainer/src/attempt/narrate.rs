//! What a training process says while it works: a few lines for the person who opens its log. The numbers themselves
//! are in the journal.

use causeway_protocol::{Event, Method, Objective};
use std::io::Write;

/// Steps between two lines about the loss.
const STEPS: u64 = 5;

/// Prints what an event means, if it is worth a line.
pub fn narrate(event: &Event) {
    if let Some(line) = line(event) {
        say(&line);
    }
}

/// Prints a line. A log that cannot be written must not end the work.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// What a method that reads captions is shown in a training.
pub fn shown(method: &Method, objective: &Objective) -> Option<String> {
    let reads = method.reads()?;
    let (name, without) = (method.as_str(), reads.without);
    let percent = 100.0 * reads.caption_dropout;
    let compared = objective.contrastive.is_some() || objective.caption.is_some();
    let who = match (objective.reconstruction.is_some(), compared, reads.leak) {
        (_, true, true) => {
            "every term, also what the encoder's output is compared with (leak = true): such a \
                            loss can fall without a look at the image"
        }
        (true, true, false) => "the reconstruction alone; what is compared with a caption has not seen it",
        (true, false, _) => "the reconstruction",
        (false, ..) => {
            return Some(format!(
                "{name} reads captions, but here the encoder never sees one: there is no reconstruction, and \
                 what is compared with a caption must not have seen it (leak = false). In its place: {without}"
            ));
        }
    };
    Some(format!(
        "{name} shows captions to {who}. In place of a caption, and for {percent} % of them: {without}"
    ))
}

/// What a method that reads captions is given in an evaluation.
pub fn evaluated(method: &Method) -> Option<String> {
    let without = method.reads()?.without;
    Some(format!("{} is evaluated without captions. In their place: {without}", method.as_str()))
}

fn line(event: &Event) -> Option<String> {
    match event {
        Event::Started { environment, phase, resumed_step } => Some(format!(
            "causeway-trainer {} ({}), libtorch {}, {} with {} threads; begins with {phase} at step {resumed_step}",
            environment.version,
            environment.commit,
            environment.libtorch,
            environment.device,
            environment.threads
        )),
        Event::Backbone { digest, parameters, trainable } => {
            Some(format!("θ0 {digest:.12}: {parameters} values; {trainable} are trained"))
        }
        Event::Captions { asset, digest, images, distinct } => {
            Some(format!("captions {asset} {digest:.12}: {images} images, {distinct} distinct captions"))
        }
        Event::Metrics { step, values } if *step == 1 || step % STEPS == 0 => {
            let loss = values.get("loss")?;
            Some(format!("step {step}: loss {loss:.4}"))
        }
        Event::ResumeState { step, blob } => Some(format!("step {step}: resume state, {} bytes", blob.bytes)),
        Event::Checkpoint { step, blob, .. } => {
            Some(format!("step {step}: checkpoint {:.12}, {} bytes", blob.sha256, blob.bytes))
        }
        Event::Dataset { title, queries, bank, .. } => {
            Some(format!("{title}: {queries} images against {bank}"))
        }
        Event::Point(point) => {
            let percent = 100.0 * f64::from(point.correct) / f64::from(point.n.max(1));
            Some(format!("  α {}, {}: {percent:.1} %", point.alpha, point.protocol.readout.label()))
        }
        Event::Spectrum(report) => Some(format!("spectra of {} layers", report.layers.len())),
        Event::Similarity(report) => {
            Some(format!("similarity on {} images of {}", report.images, report.title))
        }
        Event::RolledBack { step, rollbacks, reason } => {
            Some(format!("{reason}: rollback {rollbacks}, going on from step {step} with lower rates"))
        }
        Event::Metrics { .. }
        | Event::Values { .. }
        | Event::Phase { .. }
        | Event::Progress(_)
        | Event::Features(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    #[test]
    fn every_fifth_step_has_a_line() {
        let metrics = |step| Event::Metrics { step, values: BTreeMap::from([("loss".to_owned(), 2.5)]) };
        assert_eq!(line(&metrics(1)).unwrap(), "step 1: loss 2.5000");
        assert_eq!(line(&metrics(2)), None);
        assert_eq!(line(&metrics(10)).unwrap(), "step 10: loss 2.5000");
    }

    #[test]
    fn a_log_says_who_is_shown_captions_and_what_stands_in_for_them() {
        let say = |method: Value, objective: Value| {
            let (method, objective) =
                (serde_json::from_value(method).unwrap(), serde_json::from_value(objective).unwrap());
            (shown(&method, &objective).unwrap_or_default(), evaluated(&method).unwrap_or_default())
        };
        let (both, contrastive) =
            (json!({"contrastive": {}, "reconstruction": {}}), json!({"contrastive": {}}));
        let film = json!({"kind": "film", "generator": {"caption_dropout": 0.25}});
        let (trained, evaluated) = say(film.clone(), both.clone());
        assert_eq!(
            trained,
            "film shows captions to the reconstruction alone; what is compared with a caption has not seen it. \
             In place of a caption, and for 25 % of them: a learned null text"
        );
        assert_eq!(evaluated, "film is evaluated without captions. In their place: a learned null text");
        assert!(say(film, contrastive.clone()).0.contains("the encoder never sees one"));
        let replay = json!({"kind": "token_replay", "leak": true});
        let (trained, evaluated) = say(replay, contrastive);
        assert!(trained.contains("leak = true"), "{trained}");
        assert!(evaluated.ends_with("a replay memory of the training captions"), "{evaluated}");
        let drop = say(json!({"kind": "fusion", "null_text": "drop"}), json!({"reconstruction": {}}));
        assert!(drop.0.contains("to the reconstruction.") && drop.1.ends_with("no text at all"), "{drop:?}");
        assert_eq!(say(json!({"kind": "film"}), both), (String::new(), String::new()));
    }
}
