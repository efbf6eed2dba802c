//! `farlan doctor`: asks the node what is wrong, or looks at the host alone where none runs.

use crate::{
    args::Global,
    client::{Client, ClientError},
    output::{say, say_json, say_paragraph},
};
use overlay_node::doctor;
use overlay_types::doctor::{Check, Diagnosis, Verdict};
use std::process::ExitCode;

/// Says what was found; fails when something was.
pub(super) async fn doctor(global: &Global, json: bool) -> anyhow::Result<ExitCode> {
    let client = Client::new(global)?;
    let diagnosis = match client.get::<Diagnosis>("/v1/doctor").await {
        Ok(diagnosis) => diagnosis,
        Err(ClientError::NotRunning(_)) => doctor::judge(&doctor::host::without_node().await),
        Err(error) => return Err(error.into()),
    };
    if json {
        say_json(&diagnosis)?;
    } else {
        diagnosis.checks.iter().for_each(show);
        say(&summary(&diagnosis));
    }
    Ok(if diagnosis.has_findings() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn show(check: &Check) {
    /// The longest title and a gap.
    const TITLE_WIDTH: usize = 15;
    let mark = match check.verdict {
        Verdict::Ok => "ok      ",
        Verdict::Finding => "WRONG   ",
        Verdict::Unknown => "not seen",
    };
    let mark = format!("{mark}  {:TITLE_WIDTH$}", check.check.title());
    say_paragraph(&mark, &format!("{}.", check.evidence));
    if let Some(advice) = &check.advice {
        say_paragraph(&" ".repeat(mark.chars().count()), &format!("→ {advice}."));
    }
}

fn summary(diagnosis: &Diagnosis) -> String {
    let count = |verdict| {
        diagnosis
            .checks
            .iter()
            .filter(|c| c.verdict == verdict)
            .count()
    };
    match (count(Verdict::Finding), count(Verdict::Unknown)) {
        (0, 0) => "Nothing is wrong.".into(),
        (0, unseen) => format!("Nothing wrong was found; {unseen} could not be looked at."),
        (1, _) => "One thing is wrong.".into(),
        (found, _) => format!("{found} things are wrong."),
    }
}
