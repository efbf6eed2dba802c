//! What the demo says: each step as it happens, each check with its outcome, and at the end a table for people
//! or JSON for scripts.

use anyhow::Result;
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

/// One thing that was to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Short name for scripts.
    pub name: &'static str,
    /// Whether it was shown.
    pub ok: bool,
    /// What was seen, or what went wrong.
    pub detail: String,
}

/// The whole outcome, as `--json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Whether every check holds.
    pub ok: bool,
    /// All of them, in the order in which they were made.
    pub checks: Vec<Check>,
}

/// Collects checks and tells the user how it goes.
pub(super) struct Report {
    json: bool,
    started: Instant,
    checks: Vec<Check>,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            started: Instant::now(),
            checks: Vec::new(),
        }
    }

    /// Says what is being done. In JSON mode this goes to standard error, where it disturbs nobody.
    pub(super) fn step(&self, what: &str) {
        self.line(&format!(
            "{:6.1} s  {what}",
            self.started.elapsed().as_secs_f64()
        ));
    }

    /// Says something that belongs to the step before.
    pub(super) fn note(&self, what: &str) {
        for line in what.lines() {
            self.line(&format!("          {line}"));
        }
    }

    /// Records and tells how a check went; a failed one does not stop the others.
    pub(super) fn check(&mut self, name: &'static str, seen: Result<String>) {
        let (ok, detail) = match seen {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        let mark = if ok { "ok    " } else { "FAILED" };
        let mut lines = detail.lines();
        self.step(&format!(
            "{mark}  {name}: {}",
            lines.next().unwrap_or_default()
        ));
        self.note(&lines.collect::<Vec<_>>().join("\n"));
        self.checks.push(Check { name, ok, detail });
    }

    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            ok: !self.checks.is_empty() && self.checks.iter().all(|check| check.ok),
            checks: self.checks.clone(),
        }
    }

    /// Closes the report: the sum for people, JSON for scripts.
    pub(super) fn finish(&self) -> Result<Outcome> {
        let outcome = self.outcome();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&outcome)?);
        } else {
            let held = outcome.checks.iter().filter(|check| check.ok).count();
            self.step(&format!("{held} of {} checks hold", outcome.checks.len()));
        }
        Ok(outcome)
    }

    fn line(&self, text: &str) {
        // A reader that went away is no reason to leave the lab half way.
        let _ = if self.json {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_makes_the_whole_fail() {
        let mut report = Report::new(true);
        report.check("works", Ok("seen".into()));
        assert!(report.outcome().ok);

        report.check("breaks", Err(anyhow::anyhow!("not seen")));

        let outcome = report.outcome();
        assert!(!outcome.ok);
        assert_eq!(
            outcome.checks[1],
            Check {
                name: "breaks",
                ok: false,
                detail: "not seen".into()
            }
        );
    }

    #[test]
    fn a_demo_that_came_to_no_check_did_not_succeed() {
        assert!(!Report::new(true).outcome().ok);
    }
}
