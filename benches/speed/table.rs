//! Tables in Markdown: medians, ranges, and how far they are from the targets.

use std::{collections::BTreeMap, fs};

use crate::{Figures, Result, measure::Sample, variable};

struct Samples(Vec<Sample>);

impl Samples {
    fn sets(&self) -> Vec<&str> {
        let mut sets: Vec<&str> = Vec::new();
        for sample in &self.0 {
            if !sets.contains(&sample.set.as_str()) {
                sets.push(&sample.set);
            }
        }
        sets
    }

    fn cases(&self, set: &str) -> Vec<&str> {
        let mut cases: Vec<&str> = Vec::new();
        for sample in self.0.iter().filter(|sample| sample.set == set) {
            if !cases.contains(&sample.case.as_str()) {
                cases.push(&sample.case);
            }
        }
        cases
    }

    /// A figure of a case, by round.
    fn figure(&self, set: &str, case: &str, of: impl Fn(&Figures) -> f64) -> BTreeMap<u32, f64> {
        let matching = self.0.iter().filter(|sample| sample.set == set && sample.case == case);
        matching.map(|sample| (sample.round, of(&sample.figures))).collect()
    }

    /// The median of a figure.
    fn median(&self, set: &str, case: &str, of: impl Fn(&Figures) -> f64) -> Option<f64> {
        median(self.figure(set, case, of).into_values().collect())
    }

    /// The median of the rounds' ratios between two rates.
    fn ratio(&self, set: &str, case: &str, to: &str) -> Option<f64> {
        let (rates, base) = (self.figure(set, case, |it| it.per_s), self.figure(set, to, |it| it.per_s));
        median(rates.iter().filter_map(|(round, rate)| Some(rate / base.get(round)?)).collect())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

fn range(values: &BTreeMap<u32, f64>, decimals: usize) -> String {
    let (least, most) =
        values.values().fold((f64::MAX, f64::MIN), |(least, most), value| (value.min(least), value.max(most)));
    let middle = median(values.values().copied().collect()).unwrap_or_default();
    format!("{middle:.decimals$} ({least:.decimals$}-{most:.decimals$})")
}

/// Description of a case, for the table.
fn describe(case: &str) -> String {
    let of = |rest: &str| rest.replace(" x ", ", parallelism ");
    if let Some(rest) = case.strip_prefix("runs ") {
        format!("sync-operator, runs without work, concurrency {rest}")
    } else if let Some(rest) = case.strip_prefix("BullMQ runs ") {
        format!("BullMQ, jobs without work, concurrency {rest}")
    } else if let Some(rest) = case.strip_prefix("sync ") {
        format!("**sync-operator**, batchSize {}", of(rest))
    } else if let Some(rest) = case.strip_prefix("range ") {
        format!("floor: bare `updateMany` over ranges of {}", rest.replace(" x ", ", connections: "))
    } else if let Some(rest) = case.strip_prefix("bulk ") {
        format!("floor: bare `update` command with statements: {}", rest.replace(" x ", ", connections: "))
    } else if let Some(rest) = case.strip_prefix("BullMQ ").filter(|rest| rest.parse::<u32>().is_ok()) {
        format!("BullMQ, `bulkWrite` of {rest}")
    } else if let Some(rest) = case.strip_prefix("Bull ") {
        format!("Bull, pages of {rest}, an update for each user")
    } else {
        case.replace("latency", "from enqueue to start, 200 a second")
    }
}

/// Prints all tables of `$BENCH_RESULTS`.
pub fn print() -> Result<()> {
    let text = fs::read_to_string(variable("BENCH_RESULTS")?)?;
    let samples = Samples(text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?);
    for set in samples.sets() {
        let loads: Vec<f64> = samples.0.iter().filter(|sample| sample.set == set).map(|sample| sample.load).collect();
        let (least, most) =
            loads.iter().fold((f64::MAX, f64::MIN), |(a, b): (f64, f64), load| (a.min(*load), b.max(*load)));
        println!("\n### {set} (load average {least:.1} to {most:.1})\n");
        println!("| what | a second: median (range) | CPU, s | peak RSS, MiB |\n| --- | --- | --- | --- |");
        for case in samples.cases(set) {
            let of = |figure: fn(&Figures) -> f64| samples.figure(set, case, figure);
            let result = if case.ends_with("latency") {
                format!("p50 {} ms, p99 {} ms", range(&of(|it| it.p50_ms), 2), range(&of(|it| it.p99_ms), 2))
            } else {
                range(&of(|it| it.per_s), 0)
            };
            let middle = |figure: fn(&Figures) -> f64| samples.median(set, case, figure).unwrap_or_default();
            let (cpu, rss) = (middle(|it| it.cpu_s), middle(|it| it.rss_mib));
            println!("| {} | {result} | {cpu:.1} | {rss:.0} |", describe(case));
        }
    }
    println!("\n### Targets\n\n| target | measured | met |\n| --- | --- | --- |");
    for set in samples.sets() {
        targets(&samples, set);
    }
    Ok(())
}

fn targets(samples: &Samples, set: &str) {
    let at_least = |what: &str, limit: f64, measured: Option<f64>| {
        if let Some(measured) = measured {
            let met = if measured >= limit { "yes" } else { "**no**" };
            println!("| {set}: {what} ≥ {limit} | {measured:.2} | {met} |");
        }
    };
    let below = |what: &str, limit: f64, measured: Option<f64>| {
        if let Some(measured) = measured {
            let met = if measured < limit { "yes" } else { "**no**" };
            println!("| {set}: {what} < {limit} | {measured:.2} | {met} |");
        }
    };
    for (batch, limit) in [("100", 0.8), ("1000", 0.9)] {
        let (ours, floor) = (format!("sync {batch} x 4"), format!("range {batch} x 4"));
        at_least(&format!("batchSize {batch}, share of the floor"), limit, samples.ratio(set, &ours, &floor));
    }
    at_least("defaults, times Bull", 10.0, samples.ratio(set, "sync 100 x 4", "Bull 100"));
    for batch in ["100", "1000"] {
        let (ours, theirs) = (format!("sync {batch} x 4"), format!("BullMQ {batch}"));
        at_least(&format!("batchSize {batch}, times BullMQ"), 1.0, samples.ratio(set, &ours, &theirs));
    }
    for slots in [1, 10, 50, 200] {
        let (ours, theirs) = (format!("runs {slots}"), format!("BullMQ runs {slots}"));
        at_least(&format!("concurrency {slots}, times BullMQ"), 1.0, samples.ratio(set, &ours, &theirs));
    }
    below("p99 from enqueue to start, ms", 3.0, samples.median(set, "latency", |it| it.p99_ms));
    let peaks = samples.cases(set).into_iter().filter(|case| case.starts_with("sync "));
    let peak = peaks.flat_map(|case| samples.figure(set, case, |it| it.rss_mib).into_values()).reduce(f64::max);
    below("peak memory of a worker, MiB", 40.0, peak);
}
