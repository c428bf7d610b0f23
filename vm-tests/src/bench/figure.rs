//! One figure, and what paired runs make of two series of numbers.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// Median, least and most of a series.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of at least one number.
    pub fn of(mut values: Vec<f64>) -> Result<Self> {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().context("the median of nothing");
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            at(middle)?
        } else {
            f64::midpoint(at(middle.saturating_sub(1))?, at(middle)?)
        };
        Ok(Self {
            median,
            least: at(0)?,
            most: at(values.len() - 1)?,
        })
    }
}

/// Two kinds of runs, compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Of ours.
    pub ours: Spread,
    /// Of the peer.
    pub peer: Spread,
    /// Of the ratios peer : ours of each pair. More than 1: ours is faster.
    pub faster: Spread,
    /// Of the ratios ours : peer of each pair. Less than 1: ours is faster.
    pub longer: Spread,
}

impl Comparison {
    /// Of pairs: ours, the peer's.
    pub fn of(runs: &[(f64, f64)]) -> Result<Self> {
        if let Some((one, two)) = runs.iter().find(|(one, two)| *one <= 0.0 || *two <= 0.0) {
            bail!("a run took no time at all: {one} and {two}");
        }
        let spread = |of: fn(&(f64, f64)) -> f64| Spread::of(runs.iter().map(of).collect());
        Ok(Self {
            ours: spread(|(one, _)| *one)?,
            peer: spread(|(_, two)| *two)?,
            faster: spread(|(one, two)| two / one)?,
            longer: spread(|(one, two)| one / two)?,
        })
    }
}

/// Runs `ours` and `peer` in turn, `pairs` times: a machine that grows slower does it to both.
pub fn paired(pairs: u32, mut ours: impl FnMut() -> Result<f64>, mut peer: impl FnMut() -> Result<f64>) -> Result<Comparison> {
    let runs: Result<Vec<_>> = (0..pairs).map(|_| Ok((ours()?, peer()?))).collect();
    Comparison::of(&runs?)
}

/// What a figure is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// The measured number, at most so much.
    AtMost(f64),
    /// The measured number, at least so much.
    AtLeast(f64),
    /// The median ratio, at most so much.
    RatioAtMost(f64),
    /// The median ratio, at least so much.
    RatioAtLeast(f64),
    /// Told for comparison.
    None,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured, in words.
    pub what: String,
    /// Of `ours` and `peer`.
    pub unit: &'static str,
    /// Ours.
    pub ours: Spread,
    /// The peer, where there is one.
    pub peer: Option<Spread>,
    /// Peer and ours, pair by pair.
    pub ratio: Option<Spread>,
    /// The same of the best run of each side: what a machine that has nothing else to do comes near.
    pub best: Option<f64>,
    /// How often.
    pub runs: u32,
    /// What is to be reached.
    pub target: Target,
}

impl Figure {
    /// A number on its own.
    pub fn alone(what: impl Into<String>, unit: &'static str, values: Vec<f64>, target: Target) -> Result<Self> {
        Ok(Self {
            what: what.into(),
            unit,
            runs: values.len() as u32,
            ours: Spread::of(values)?,
            peer: None,
            ratio: None,
            best: None,
            target,
        })
    }

    /// Paired runs; the target says which way round the ratio is.
    pub fn compared(what: impl Into<String>, unit: &'static str, runs: u32, compared: &Comparison, target: Target) -> Self {
        let (ours, peer) = (compared.ours, compared.peer);
        let (ratio, best) = match target {
            Target::AtMost(_) | Target::AtLeast(_) | Target::RatioAtMost(_) => (compared.longer, ours.least / peer.least),
            Target::RatioAtLeast(_) | Target::None => (compared.faster, peer.least / ours.least),
        };
        Self {
            what: what.into(),
            unit,
            ours,
            peer: Some(peer),
            ratio: Some(ratio),
            best: Some(best),
            runs,
            target,
        }
    }

    /// Whether the target is reached; none where there is none.
    pub fn reached(&self) -> Option<bool> {
        match (self.target, &self.ratio) {
            (Target::AtMost(most), _) => Some(self.ours.median <= most),
            (Target::AtLeast(least), _) => Some(self.ours.median >= least),
            (Target::RatioAtMost(most), Some(ratio)) => Some(ratio.median <= most),
            (Target::RatioAtLeast(least), Some(ratio)) => Some(ratio.median >= least),
            (Target::RatioAtMost(_) | Target::RatioAtLeast(_), None) | (Target::None, _) => None,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spread = |spread: &Spread, digits: usize| {
            if spread.least < spread.most {
                format!("{:.digits$} ({:.digits$}–{:.digits$})", spread.median, spread.least, spread.most)
            } else {
                format!("{:.digits$}", spread.median)
            }
        };
        let digits = if self.ours.median < 100.0 { 2 } else { 0 };
        write!(f, "{}\n    {} {}", self.what, spread(&self.ours, digits), self.unit)?;
        if let Some(peer) = &self.peer {
            write!(f, "; peer {} {}", spread(peer, digits), self.unit)?;
        }
        if let Some(ratio) = &self.ratio {
            write!(f, "; ratio {}", spread(ratio, 2))?;
        }
        if let Some(best) = self.best.filter(|_| self.runs > 1) {
            write!(f, ", of the best runs {best:.2}")?;
        }
        if self.runs > 1 {
            let kind = if self.peer.is_some() { "pairs" } else { "runs" };
            write!(f, "; median of {} {kind}", self.runs)?;
        }
        let verdict = match self.reached() {
            Some(true) => "reached",
            Some(false) => "NOT reached",
            None => return Ok(()),
        };
        match self.target {
            Target::AtMost(most) => write!(f, "\n    target: at most {most} {}: {verdict}", self.unit),
            Target::AtLeast(least) => write!(f, "\n    target: at least {least} {}: {verdict}", self.unit),
            Target::RatioAtMost(most) => write!(f, "\n    target: at most {most} × the peer: {verdict}"),
            Target::RatioAtLeast(least) => write!(f, "\n    target: at least {least} × the peer's speed: {verdict}"),
            Target::None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_median_of_ratios_is_by_pair() {
        let mut ones = [10.0, 40.0, 30.0].into_iter();
        let mut twos = [10.0, 20.0, 10.0].into_iter();
        let compared = paired(3, || Ok(ones.next().unwrap()), || Ok(twos.next().unwrap())).unwrap();
        assert_eq!(
            (compared.ours.median, compared.peer.median, compared.longer.median),
            (30.0, 10.0, 2.0)
        );
        assert_eq!((compared.longer.least, compared.longer.most), (1.0, 3.0));
        assert!((compared.faster.median - 0.5).abs() < 1e-9);
        assert!((Spread::of(vec![10.0, 1.0, 9.0, 2.0]).unwrap().median - 5.5).abs() < 1e-9);
        assert!(Spread::of(Vec::new()).is_err());
        assert!(paired(1, || Ok(0.0), || Ok(1.0)).is_err());
    }

    #[test]
    fn a_figure_says_whether_its_target_is_reached() {
        let compared = paired(1, || Ok(100.0), || Ok(190.0)).unwrap();
        for (target, reached, words) in [
            (
                Target::RatioAtLeast(2.0),
                Some(false),
                "ratio 1.90\n    target: at least 2 × the peer's speed: NOT reached",
            ),
            (Target::RatioAtLeast(1.8), Some(true), "at least 1.8 × the peer's speed: reached"),
            (
                Target::RatioAtMost(0.5),
                Some(false),
                "ratio 0.53\n    target: at most 0.5 × the peer: NOT reached",
            ),
            (Target::AtMost(100.0), Some(true), "at most 100 ms: reached"),
            (Target::AtLeast(101.0), Some(false), "at least 101 ms: NOT reached"),
            (Target::None, None, "100 ms; peer 190 ms; ratio 1.90"),
        ] {
            let figure = Figure::compared("what", "ms", 1, &compared, target);
            assert_eq!(figure.reached(), reached, "{target:?}");
            let text = figure.to_string();
            assert!(text.contains(words), "{text}");
        }
        let alone = Figure::alone("size", "bytes", vec![3_710_264.0], Target::AtMost(3_900_000.0)).unwrap();
        assert_eq!(
            alone.to_string(),
            "size\n    3710264 bytes\n    target: at most 3900000 bytes: reached"
        );
    }
}
