//! What a training process says while it works: a few lines for the person who opens its log. The numbers themselves
//! are in the journal.

use causeway_protocol::Event;
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
            Some(format!("  α {}, k {}: {percent:.1} %", point.alpha, point.protocol.k))
        }
        Event::RolledBack { step, rollbacks, reason } => {
            Some(format!("{reason}: rollback {rollbacks}, going on from step {step} with lower rates"))
        }
        Event::Metrics { .. } | Event::Phase { .. } | Event::Progress(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_fifth_step_has_a_line() {
        let metrics = |step| Event::Metrics { step, values: BTreeMap::from([("loss".to_owned(), 2.5)]) };
        assert_eq!(line(&metrics(1)).unwrap(), "step 1: loss 2.5000");
        assert_eq!(line(&metrics(2)), None);
        assert_eq!(line(&metrics(10)).unwrap(), "step 10: loss 2.5000");
    }
}
