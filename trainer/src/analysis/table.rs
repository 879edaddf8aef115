//! Reports as a person reads them in a terminal.

use causeway_protocol::{Alpha, SimilarityReport, SpectrumReport, SpectrumValues};

/// One line a layer and α.
pub fn spectrum(report: &SpectrumReport) -> String {
    let width = report.layers.iter().map(|layer| layer.name.len()).max().unwrap_or(5).max(5);
    let mut text = format!(
        "{:<width$}  {:>14}  {:>6}  {:>8}  {:>7}  {:>7}  {:>10}  {:>6}  {:>9}  {:>9}  {:>8}\n",
        "layer", "shape", "α", "ww_alpha", "D", "sigma", "xmin", "spikes", "stable", "log_norm", "weighted"
    );
    for layer in &report.layers {
        let shape: Vec<String> = layer.shape.iter().map(u32::to_string).collect();
        for values in &layer.values {
            let alpha = if layer.moved { values.alpha.to_string() } else { "all".to_owned() };
            text += &format!("{:<width$}  {:>14}  {alpha:>6}", layer.name, shape.join(" × "));
            text += &numbers(values);
            text += if layer.added { "  added" } else { "" };
            text += "\n";
        }
    }
    text += &format!("\nmean ww_alpha of the backbone's layers, as {} counts\n", report.follows);
    for alpha in &report.alphas {
        let mean = report.mean_ww_alpha(*alpha).map_or("none".to_owned(), |mean| format!("{mean:.4}"));
        text += &format!("  α {:<6}  {mean}\n", alpha.to_string());
    }
    text
}

fn numbers(values: &SpectrumValues) -> String {
    let rank = values.stable_rank.map_or("–".to_owned(), |rank| format!("{rank:.3}"));
    let norm = values.log_norm.map_or("–".to_owned(), |norm| format!("{norm:.4}"));
    match &values.tail {
        Some(tail) => format!(
            "  {:>8.4}  {:>7.4}  {:>7.4}  {:>10.4e}  {:>6}  {rank:>9}  {norm:>9}  {:>8.4}  {}{}",
            tail.ww_alpha,
            tail.d,
            tail.sigma,
            tail.xmin,
            tail.num_pl_spikes,
            tail.alpha_weighted,
            tail.status.as_str(),
            if tail.few { ", few eigenvalues" } else { "" }
        ),
        None => format!(
            "  {:>8}  {:>7}  {:>7}  {:>10}  {:>6}  {rank:>9}  {norm:>9}  {:>8}  no tail",
            "–", "–", "–", "–", "–", "–"
        ),
    }
}

/// CKA by block, distances by layer, and how many neighbours are of the query's class.
pub fn similarity(report: &SimilarityReport) -> String {
    let mut text = format!(
        "{}: linear CKA with θ0 on {} images, without bias; features {}\n\nblock ",
        report.title, report.images, report.features
    );
    for row in &report.cka {
        text += &format!("  {:>18}", format!("α {}", row.alpha));
    }
    text += "\n      ";
    report.cka.iter().for_each(|_| text += &format!("  {:>8}  {:>8}", "class", "patches"));
    text += "\n";
    let cell = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
    let depth = report.cka.first().map_or(0, |row| row.class.len());
    for block in 0..depth {
        text += &format!("{block:<6}");
        for row in &report.cka {
            text += &format!("  {:>8}  {:>8}", cell(row.class[block]), cell(row.patches[block]));
        }
        text += "\n";
    }
    text += "feature";
    report.cka.iter().for_each(|row| text += &format!(" {:>8}  {:>8} ", cell(row.feature), ""));
    text += "\n\ndistance ‖θ1 − θ0‖ / ‖θ0‖; on the line α times that\n";
    let width = report.distances.iter().map(|layer| layer.name.len()).max().unwrap_or(0);
    for layer in &report.distances {
        let relative = layer.relative().map_or("θ0 is 0".to_owned(), |share| format!("{share:.3e}"));
        text += &format!("{:<width$}  {relative:>10}  {:.4e}\n", layer.name, layer.distance);
    }
    if !report.queries.is_empty() {
        text += &format!("\nneighbours of the query's class, of {} bank images\n", report.bank.0);
        for (at, alpha) in report.alphas.iter().enumerate() {
            let (right, all) = counts(report, at);
            text += &format!("  α {:<6}  {right} of {all}\n", alpha.to_string());
        }
    }
    text
}

/// Of the neighbours at the α of this place, how many are of their query's class, and how many there are.
fn counts(report: &SimilarityReport, at: usize) -> (usize, usize) {
    let lists = report.queries.iter().filter_map(|query| Some((query.label, query.neighbours.get(at)?)));
    lists.fold((0, 0), |(right, all), (label, list)| {
        (right + list.iter().filter(|near| near.label == label).count(), all + list.len())
    })
}

/// α as an argument gives it: "0,0.5,1".
///
/// # Errors
/// What is no ascending list of numbers from 0 to 1.
pub fn parse_alphas(text: &str) -> anyhow::Result<Vec<Alpha>> {
    let one = |part: &str| {
        let value = part.trim().parse::<f64>().ok().and_then(Alpha::from_f64);
        value.ok_or_else(|| {
            anyhow::anyhow!("--alphas: `{part}` is not a number from 0 to 1 with at most four decimals")
        })
    };
    let alphas = text.split(',').map(one).collect::<anyhow::Result<Vec<Alpha>>>()?;
    anyhow::ensure!(alphas.windows(2).all(|pair| pair[0] < pair[1]), "--alphas must ascend without repeats");
    Ok(alphas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphas_are_a_list_with_commas() {
        let alphas: Vec<f64> = parse_alphas("0, 0.5,1").unwrap().iter().map(|alpha| alpha.as_f64()).collect();
        assert_eq!(alphas, [0.0, 0.5, 1.0]);
        for (text, says) in [("1,0", "ascend"), ("0,x", "`x`"), ("2", "`2`"), ("", "``")] {
            let error = parse_alphas(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
